"""Sentences for made pages: what an article says, and what its site says around it, in several languages.

A sentence is one part of each column, in the language's own order, so that no two pages say the same.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """Columns of a sentence's parts, and the site's own words. joint stands between words, stop ends a sentence."""

    code: str
    columns: tuple[tuple[str, ...], ...]
    menu: tuple[str, ...]
    notices: tuple[str, ...]
    joint: str = " "
    stop: str = "."

    def sentence(self, dice: random.Random) -> str:
        """A sentence of running text."""
        said = self.joint.join(dice.choice(column) for column in self.columns)
        return said[0].upper() + said[1:] + self.stop

    def paragraph(self, dice: random.Random, sentences: int | None = None) -> str:
        """Some sentences, between two and six unless told."""
        between = " " if self.joint == " " or self.code == "th" else ""
        return between.join(self.sentence(dice) for _ in range(sentences or dice.randint(2, 6)))

    def title(self, dice: random.Random) -> str:
        """A heading: a sentence's first two parts."""
        return self.joint.join(dice.choice(column) for column in self.columns[:2]).capitalize()

    def phrase(self, dice: random.Random) -> str:
        """A few words that are no sentence."""
        return dice.choice(self.columns[dice.randrange(len(self.columns))])


def _columns(*rows: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(part.strip() for part in row.split("|")) for row in rows)


def _words(row: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in row.split("|"))


ENGLISH = Language(
    "en",
    _columns(
        "the old ferryman|a retired geologist|our northern expedition|the village council|a young carpenter|her uncle"
        "|the second survey|nobody in the valley|an early map|the orchard's owner|a flock of cranes|the night watch",
        "rarely mentioned|carefully measured|had already crossed|never quite understood|repaired|wrote at length about"
        "|walked along|drew|finally abandoned|used to count|described|waited beside",
        "the frozen harbour|seven copper kettles|the river's lower bend|a wooden bridge|the granite quarry"
        "|those long winters|the salt road|a broken sundial|the abandoned chapel|two hundred lanterns|the reed beds",
        "before the first snow fell|because the ice would not hold|as the letters of that year show"
        "|although the price of tin had doubled|while the others slept|until a storm carried it away"
        "|which surprised the whole parish|and kept a record of every day|without asking for payment",
    ),
    _words(
        "Home|About us|Contact|Sign in|Register|Shop|Basket|Jobs|Press|Advertise|Help centre|Subscribe|Archive|Opinion"
        "|Sport|Travel|Video|Podcasts|Newsletters|Terms of use|Privacy policy|Cookie settings|Site map|Imprint"
    ),
    _words(
        "We use cookies and similar technologies to personalise content, to analyse our traffic and to show you"
        " advertising. By clicking Accept you agree to this.|Sign up for our weekly newsletter and never miss a story."
        " You can unsubscribe at any time.|Your email address will not be published. Required fields are marked *"
        "|All rights reserved. Reproduction in whole or in part without permission is prohibited."
        "|Share this page on Facebook, Twitter, WhatsApp or by email|Enjoying this? Become a member from 3 pounds a"
        " month and read without advertisements."
    ),
)
GERMAN = Language(
    "de",
    _columns(
        "der alte Fährmann|eine pensionierte Lehrerin|der Gemeinderat|die zweite Vermessung|ein junger Tischler"
        "|niemand im Tal|die Müllerin|der Nachtwächter|ihr Großvater",
        "beschrieb|überquerte noch einmal|vermaß sorgfältig|erwähnte selten|reparierte|zeichnete|verließ schließlich"
        "|verstand nie ganz",
        "den zugefrorenen Hafen|sieben kupferne Kessel|die hölzerne Brücke|den Steinbruch|jene langen Winter"
        "|die Salzstraße|eine zerbrochene Sonnenuhr|das Röhricht am Ufer",
        "bevor der erste Schnee fiel|weil das Eis nicht trug|wie die Briefe jenes Jahres zeigen"
        "|obwohl sich der Preis für Zinn verdoppelt hatte|während die anderen schliefen|ohne Lohn zu verlangen",
    ),
    _words(
        "Startseite|Über uns|Kontakt|Anmelden|Warenkorb|Stellenangebote|Presse|Hilfe|Abo|Archiv|Sport|Reise|Mediathek"
        "|Impressum|Datenschutz|AGB|Newsletter|Barrierefreiheit"
    ),
    _words(
        "Wir verwenden Cookies, um Inhalte zu personalisieren und die Zugriffe auf unsere Website zu analysieren."
        " Mit Klick auf Akzeptieren stimmen Sie zu.|Melden Sie sich für unseren Newsletter an. Die Abmeldung ist"
        " jederzeit möglich.|Ihre E-Mail-Adresse wird nicht veröffentlicht. Erforderliche Felder sind markiert."
        "|Alle Rechte vorbehalten. Nachdruck nur mit Genehmigung."
    ),
)
FRENCH = Language(
    "fr",
    _columns(
        "le vieux passeur|une géologue à la retraite|le conseil du village|un jeune charpentier|la deuxième mission"
        "|personne dans la vallée|son grand-oncle|le veilleur de nuit",
        "mentionnait rarement|avait déjà traversé|mesura avec soin|répara|décrivit longuement|finit par quitter"
        "|n'a jamais compris",
        "le port gelé|sept chaudrons de cuivre|le pont de bois|la carrière de granit|ces longs hivers|la route du sel"
        "|la chapelle abandonnée",
        "avant les premières neiges|parce que la glace ne tenait pas|comme le montrent les lettres de cette année-là"
        "|bien que le prix de l'étain eût doublé|pendant que les autres dormaient|sans rien demander en échange",
    ),
    _words(
        "Accueil|À propos|Contact|Connexion|Panier|Emploi|Presse|Aide|Abonnements|Archives|Sport|Voyage|Vidéos"
        "|Mentions légales|Confidentialité|Plan du site"
    ),
    _words(
        "Nous utilisons des cookies pour mesurer l'audience et vous proposer des publicités adaptées. En cliquant sur"
        " Accepter, vous y consentez.|Inscrivez-vous à notre lettre d'information hebdomadaire."
        "|Votre adresse e-mail ne sera pas publiée. Les champs obligatoires sont indiqués avec *"
        "|Tous droits réservés. Toute reproduction interdite."
    ),
)
SPANISH = Language(
    "es",
    _columns(
        "el viejo barquero|una geóloga jubilada|el consejo del pueblo|un joven carpintero|nadie en el valle|su abuelo"
        "|la segunda expedición",
        "rara vez mencionaba|midió con cuidado|ya había cruzado|reparó|describió|abandonó por fin|nunca entendió",
        "el puerto helado|siete calderos de cobre|el puente de madera|la cantera de granito|aquellos largos inviernos"
        "|el camino de la sal",
        "antes de las primeras nieves|porque el hielo no aguantaba|como muestran las cartas de aquel año"
        "|aunque el precio del estaño se había duplicado|mientras los demás dormían|sin pedir nada a cambio",
    ),
    _words(
        "Inicio|Quiénes somos|Contacto|Iniciar sesión|Carrito|Empleo|Prensa|Ayuda|Suscríbete|Hemeroteca|Deportes"
        "|Viajes|Vídeos|Aviso legal|Privacidad"
    ),
    _words(
        "Utilizamos cookies propias y de terceros para analizar el tráfico y mostrar publicidad. Al pulsar Aceptar"
        " usted da su consentimiento.|Suscríbase a nuestro boletín semanal gratuito."
        "|Tu dirección de correo electrónico no será publicada.|Todos los derechos reservados."
    ),
)
RUSSIAN = Language(
    "ru",
    _columns(
        "старый паромщик|отставной геолог|сельский совет|молодой плотник|никто в долине|её дедушка|ночной сторож",
        "редко упоминал|тщательно измерил|уже пересёк|починил|подробно описал|наконец покинул",
        "замёрзшую гавань|семь медных котлов|деревянный мост|гранитный карьер|старую соляную дорогу"
        "|заброшенную часовню",
        "до первого снега|потому что лёд не держал|как показывают письма того года|хотя цена на олово удвоилась"
        "|пока остальные спали|ничего не требуя взамен",
    ),
    _words(
        "Главная|О нас|Контакты|Войти|Корзина|Вакансии|Помощь|Подписка|Архив|Спорт|Видео|Реклама|Правила"
        "|Политика конфиденциальности"
    ),
    _words(
        "Мы используем файлы cookie, чтобы анализировать посещаемость и показывать рекламу. Нажимая «Принять», вы"
        " соглашаетесь с этим.|Подпишитесь на нашу еженедельную рассылку.|Ваш адрес не будет опубликован."
        "|Все права защищены. Перепечатка запрещена."
    ),
)
CHINESE = Language(
    "zh",
    _columns(
        "老船夫|退休的地质学家|村里的长老|年轻的木匠|山谷里的人们|她的祖父|守夜人|第二支考察队",
        "很少提起|仔细测量过|早已穿过|从未真正理解|修好了|详细描述了|最终离开了|画下了",
        "结冰的港口|七口铜锅|河流下游的弯道|那座木桥|花岗岩采石场|漫长的冬天|古老的盐路|废弃的小教堂",
        "，因为冰面承受不住重量|，正如当年的书信所示|，尽管锡的价格翻了一番|，而其他人还在睡觉|，直到暴风雨把它卷走"
        "|，并且每天都留下记录",
    ),
    _words("首页|关于我们|联系我们|登录|注册|购物车|招聘|帮助中心|订阅|归档|体育|旅游|视频|使用条款|隐私政策|网站地图"),
    _words(
        "我们使用Cookie来分析流量并投放广告。点击“接受”即表示您同意。|订阅我们的每周通讯，随时可以退订。"
        "|电子邮件地址不会被公开。必填项已用*标注|版权所有，未经许可不得转载。"
    ),
    joint="",
    stop="。",
)
JAPANESE = Language(
    "ja",
    _columns(
        "年老いた渡し守は|引退した地質学者は|村の評議会は|若い大工は|谷の人々は|彼女の祖父は",
        "初雪が降る前に|氷が薄かったので|ほかの者が眠っている間に|その年の手紙が示すように|錫の値段が倍になっても",
        "凍った港を|七つの銅の釜を|川下の木の橋を|花崗岩の採石場を|古い塩の道を|壊れた日時計を",
        "丁寧に測った|何度も渡った|修理した|詳しく書き残した|ついに離れた|静かに見守った",
    ),
    _words(
        "ホーム|会社概要|お問い合わせ|ログイン|カート|採用情報|ヘルプ|購読|アーカイブ|スポーツ|動画|利用規約|プライバシー"
    ),
    _words(
        "当サイトではアクセス解析と広告のためにクッキーを使用しています。続行すると同意したものとみなされます。"
        "|メールマガジンに登録して最新情報を受け取りましょう。|メールアドレスが公開されることはありません。"
        "|無断転載を禁じます。"
    ),
    joint="",
    stop="。",
)
ARABIC = Language(
    "ar",
    _columns(
        "العبّار العجوز|عالِم الجيولوجيا المتقاعد|مجلس القرية|النجار الشاب|جدّها|الحارس الليلي",
        "لم يذكر إلا نادرًا|قاس بعناية|كان قد عبر|أصلح|وصف بالتفصيل|غادر أخيرًا",
        "الميناء المتجمد|سبع قدور نحاسية|الجسر الخشبي|محجر الغرانيت|طريق الملح القديم|تلك الشتاءات الطويلة",
        "قبل أن يتساقط الثلج الأول|لأن الجليد لم يكن يحتمل|كما تُظهر رسائل ذلك العام|رغم أن سعر القصدير تضاعف"
        "|بينما كان الآخرون نائمين",
    ),
    _words("الرئيسية|من نحن|اتصل بنا|تسجيل الدخول|السلة|وظائف|مساعدة|اشتراك|الأرشيف|رياضة|فيديو|الشروط|سياسة الخصوصية"),
    _words(
        "نستخدم ملفات تعريف الارتباط لتحليل الزيارات وعرض الإعلانات. بالنقر على قبول فإنك توافق على ذلك."
        "|اشترك في نشرتنا الأسبوعية.|لن يتم نشر عنوان بريدك الإلكتروني.|جميع الحقوق محفوظة."
    ),
)
THAI = Language(
    "th",
    _columns(
        "คนพายเรือเฒ่า|นักธรณีวิทยาวัยเกษียณ|สภาหมู่บ้าน|ช่างไม้หนุ่ม|ชาวบ้านในหุบเขา|ปู่ของเธอ",
        "แทบไม่เคยพูดถึง|วัดอย่างระมัดระวัง|เคยข้าม|ซ่อมแซม|บรรยายอย่างละเอียดถึง|จากไปในที่สุดจาก",
        "ท่าเรือที่เป็นน้ำแข็ง|หม้อทองแดงเจ็ดใบ|สะพานไม้เก่า|เหมืองหินแกรนิต|เส้นทางเกลือโบราณ|ฤดูหนาวอันยาวนาน",
        "ก่อนหิมะแรกจะตก|เพราะน้ำแข็งรับน้ำหนักไม่ไหว|ตามที่จดหมายในปีนั้นบอกไว้|แม้ราคาดีบุกจะเพิ่มเป็นสองเท่า|ขณะที่คนอื่นหลับอยู่",
    ),
    _words("หน้าแรก|เกี่ยวกับเรา|ติดต่อเรา|เข้าสู่ระบบ|ตะกร้า|สมัครงาน|ช่วยเหลือ|สมัครสมาชิก|คลังข่าว|กีฬา|วิดีโอ|ข้อกำหนด"),
    _words(
        "เว็บไซต์นี้ใช้คุกกี้เพื่อวิเคราะห์การเข้าชมและแสดงโฆษณา การคลิกยอมรับถือว่าคุณยินยอม"
        "|สมัครรับจดหมายข่าวรายสัปดาห์ของเรา|อีเมลของคุณจะไม่แสดงให้คนอื่นเห็น|สงวนลิขสิทธิ์"
    ),
    joint="",
    stop=" ",
)
HINDI = Language(
    "hi",
    _columns(
        "बूढ़े मल्लाह ने|सेवानिवृत्त भूवैज्ञानिक ने|गाँव की परिषद ने|युवा बढ़ई ने|उसके दादा ने",
        "पहली बर्फ़ गिरने से पहले|जब बाकी लोग सो रहे थे|उस साल के पत्रों के अनुसार|टिन की कीमत दोगुनी होने पर भी",
        "जमे हुए बंदरगाह को|ताँबे की सात केतलियों को|लकड़ी के पुल को|ग्रेनाइट की खदान को|नमक की पुरानी सड़क को",
        "ध्यान से नापा|कई बार पार किया|ठीक किया|विस्तार से लिखा|आख़िरकार छोड़ दिया",
    ),
    _words("मुखपृष्ठ|हमारे बारे में|संपर्क|लॉग इन|टोकरी|नौकरियाँ|सहायता|सदस्यता|संग्रह|खेल|वीडियो|शर्तें|गोपनीयता नीति"),
    _words(
        "हम विज्ञापन दिखाने और ट्रैफ़िक का विश्लेषण करने के लिए कुकीज़ का उपयोग करते हैं। स्वीकार करें पर क्लिक करके आप सहमति"
        " देते हैं।|हमारे साप्ताहिक समाचार पत्र की सदस्यता लें।|आपका ईमेल पता प्रकाशित नहीं किया जाएगा।|सर्वाधिकार सुरक्षित।"
    ),
    stop="।",
)
LANGUAGES = (ENGLISH, GERMAN, FRENCH, SPANISH, RUSSIAN, CHINESE, JAPANESE, ARABIC, THAI, HINDI)

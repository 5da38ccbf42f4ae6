// Under the pointer: one line through every chart of the view, and each chart's value there.
(() => {
  const { rows, edges } = JSON.parse(document.getElementById("data").textContent);
  if (!rows.length) return;
  const LEFT = 62, RIGHT = 14, WIDTH = 1000;
  const short = (n) => (n === null ? "not a number" : Math.abs(n) >= 1e4 ? Math.round(n).toLocaleString("en") : String(+n.toPrecision(4)));
  for (const view of document.querySelectorAll(".view")) {
    const charts = [...view.querySelectorAll("svg[data-axis]")];
    const axis = charts[0].dataset.axis, column = axis === "step" ? 0 : 1, [low, high] = edges[axis];
    const place = (x) => LEFT + ((x - low) / (high - low)) * (WIDTH - LEFT - RIGHT);
    view.addEventListener("pointermove", (event) => {
      const box = charts[0].getBoundingClientRect();
      const wanted = low + ((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT)) * (high - low);
      let first = 0, last = rows.length - 1;
      while (first < last) {
        const middle = (first + last) >> 1;
        if (rows[middle][column] < wanted) first = middle + 1; else last = middle;
      }
      const row = first && wanted - rows[first - 1][column] < rows[first][column] - wanted ? rows[first - 1] : rows[first];
      charts.forEach((chart, index) => {
        const line = chart.querySelector(".cursor");
        line.setAttribute("x1", place(row[column]));
        line.setAttribute("x2", place(row[column]));
        line.style.visibility = "visible";
        chart.querySelector(".readout").textContent = `step ${row[0].toLocaleString("en")}: ${short(row[2 + index])}`;
      });
    });
    view.addEventListener("pointerleave", () => charts.forEach((chart) => {
      chart.querySelector(".cursor").style.visibility = "hidden";
      chart.querySelector(".readout").textContent = "";
    }));
  }
})();

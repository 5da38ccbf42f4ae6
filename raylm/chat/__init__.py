"""Chats as data: records become conversations, a template renders them, and each turn keeps its place in the text."""

"""Tests; a package by name, as some libraries install a package of the same name."""

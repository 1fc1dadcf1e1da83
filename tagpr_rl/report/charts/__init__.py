"""Geometry of the plots in SVG units; the templates draw it."""

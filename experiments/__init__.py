"""Experiments that take several trainings: each a program that makes a table and a plot."""

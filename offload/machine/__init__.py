"""Rates and budgets of one machine. Pure."""

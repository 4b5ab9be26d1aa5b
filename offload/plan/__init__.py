"""Decides where every column goes, what that takes and what a step should cost. Pure arithmetic."""

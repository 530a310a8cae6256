"""The evaluation of the PaDiM paper: its systems, tables and plots, from data on this machine."""

"""What switches do: a planner without any I/O, and the Ryu application that installs its plans."""

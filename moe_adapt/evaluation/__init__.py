"""Pure functions of recorded decisions and predictions."""

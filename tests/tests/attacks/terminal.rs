//! Foreign text on an operator's terminal.

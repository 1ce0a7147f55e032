//! Cancel, stop, signals and limits, as a payload tries to escape them.

//! What others can make us hold or do: reports, outputs, entries, copies, time.

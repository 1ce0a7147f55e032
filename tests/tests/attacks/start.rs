//! The start of a job: what can be caught between the claim and the job's first instruction.

//! What a hostile payload, image or user tries against the pilot and against the truth of a result, and that it gains
//! nothing:
//! one file for each promise of `docs/threat-model.md`.

mod blame;
mod bounds;
mod clients;
mod images;
mod kernel_state;
mod leftovers;
mod namespaces;
mod other_slots;
mod pilot;
mod pilot_jobs;
mod races;
mod record;
mod spool;
mod start;
mod steering;
mod terminal;

//! What a user can see, in one program: the longest tests of one room run beside those of the next.

mod card;
mod cli;
mod data_parallel;
mod images;
mod language;
mod library;
mod reference;
mod server;
mod support;
mod training;

//! What a user meets on the command line: flags, screens and files, models and adapters from and to a hub, and what is said of bad input.

mod bad_input;
mod bad_language_input;
mod bad_models;
mod command_line;
mod demo;
mod dist;
mod graphics_driver;
mod hub;
mod launch_examples;
mod outside;
mod push;
mod run_folders;

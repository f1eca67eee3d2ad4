//! Tests that drive the built binary: one module per subject.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic and print")]

#[path = "../support/mod.rs"]
mod support;

mod failing_workers;
mod fault_corners;
mod fault_rows;
mod fault_rows_life;
// Only Linux has control groups.
#[cfg(target_os = "linux")]
mod fault_rows_memory;
mod faults;
mod guides;
mod guilt;
mod house;
mod http_faults;
mod model_files;
mod models;
mod native_api;
mod notify;
mod operations;
mod overload;
mod privacy;
mod processes;
mod prompts;
mod qwen3;
mod real_model;
mod service;
mod shutdown;
mod start;
mod surroundings;
mod terminal;
mod tokenizer_files;
mod trust;
mod vector_forms;

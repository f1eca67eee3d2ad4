//! Flags that say what one client may cost.

use clap::Args;

/// Flags of `serve` that bound what one client may cost. The defaults suit nearly everybody.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitFlags {
    /// Longest body of a request in bytes, 1024 to 1073741824; a longer one is answered 413
    #[arg(long, env = "AKIDB_MAX_BODY_BYTES", value_name = "N", default_value = "16777216")]
    pub max_body_bytes: String,

    /// Bytes that all bodies under way and what is made of them may take together, at least --max-body-bytes; then 503
    ///
    /// Bodies up to 16 KiB are read in any case.
    #[arg(long, env = "AKIDB_MAX_BODIES_BYTES", value_name = "N", default_value = "268435456")]
    pub max_bodies_bytes: String,

    /// Bytes that all answers under way may take together, 1048576 to 1099511627776; then 503
    ///
    /// An answer takes 4 bytes for each number, from the time its request is read until the client has taken it. Answers of up
    /// to 32 KiB are given in any case, and one answer at a time may be larger than that.
    #[arg(long, env = "AKIDB_MAX_RESPONSE_BYTES", value_name = "N", default_value = "268435456")]
    pub max_response_bytes: String,

    /// How long a client may take to send the head of a request, 10ms to 1h; then it is closed
    #[arg(long, env = "AKIDB_HEADER_TIMEOUT", value_name = "TIME", default_value = "10s")]
    pub header_timeout: String,

    /// How long a client may take to send the body of a request, 10ms to 1h; then it is answered 408
    #[arg(long, env = "AKIDB_BODY_TIMEOUT", value_name = "TIME", default_value = "30s")]
    pub body_timeout: String,

    /// How long a client may take no byte of its answer, 10ms to 1h; then it is closed
    #[arg(long, env = "AKIDB_WRITE_TIMEOUT", value_name = "TIME", default_value = "30s")]
    pub write_timeout: String,

    /// How long a connection may stay open without a request, 10ms to 1h
    ///
    /// Longer than clients keep theirs, so that they never write to one that is being closed.
    #[arg(long, env = "AKIDB_IDLE_TIMEOUT", value_name = "TIME", default_value = "75s")]
    pub idle_timeout: String,

    /// How long a refused client that goes on sending is listened to, so that it can read why, 0s to 1m
    #[arg(long, env = "AKIDB_DISCARD_TIMEOUT", value_name = "TIME", default_value = "1s")]
    pub discard_timeout: String,
}

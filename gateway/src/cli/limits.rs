//! Flags that limit what a client may use.

use clap::Args;

/// Flags of `serve` that limit what a client may use. The defaults suit nearly everyone.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitFlags {
    /// Maximum request body in bytes, 1024 to 1073741824; for a larger one the response is 413
    #[arg(long, env = "AKIDB_MAX_BODY_BYTES", value_name = "N", default_value = "16777216")]
    pub max_body_bytes: String,

    /// Maximum memory in bytes for all requests in progress, at least --max-body-bytes; beyond that the response is 503
    ///
    /// Bodies up to 16 KiB are always read.
    #[arg(long, env = "AKIDB_MAX_BODIES_BYTES", value_name = "N", default_value = "268435456")]
    pub max_bodies_bytes: String,

    /// Maximum memory in bytes for all responses in progress, 1048576 to 1099511627776; beyond that the response is 503
    ///
    /// A response takes 4 bytes per number, from when its request is read until the client has received it. Responses up to
    /// 32 KiB are always sent, and one response at a time may exceed the limit.
    #[arg(long, env = "AKIDB_MAX_RESPONSE_BYTES", value_name = "N", default_value = "268435456")]
    pub max_response_bytes: String,

    /// How long a client may take to send the head of a request, 10ms to 1h; then the connection is closed
    #[arg(long, env = "AKIDB_HEADER_TIMEOUT", value_name = "TIME", default_value = "10s")]
    pub header_timeout: String,

    /// How long a client may take to send the body of a request, 10ms to 1h; then the response is 408
    #[arg(long, env = "AKIDB_BODY_TIMEOUT", value_name = "TIME", default_value = "30s")]
    pub body_timeout: String,

    /// How long a client may go without reading any of the response, 10ms to 1h; then the connection is closed
    #[arg(long, env = "AKIDB_WRITE_TIMEOUT", value_name = "TIME", default_value = "30s")]
    pub write_timeout: String,

    /// How long a connection may stay open without a request, 10ms to 1h
    ///
    /// Keep it longer than the clients' own idle timeout, so that they never write to a closing connection.
    #[arg(long, env = "AKIDB_IDLE_TIMEOUT", value_name = "TIME", default_value = "75s")]
    pub idle_timeout: String,

    /// How long to keep reading from a refused client so that it can receive the error, 0s to 1m
    #[arg(long, env = "AKIDB_DISCARD_TIMEOUT", value_name = "TIME", default_value = "1s")]
    pub discard_timeout: String,
}

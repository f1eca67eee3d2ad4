//! Flags that say when a worker is given up, and what is remembered of it.

use clap::Args;

/// Flags of `serve` for workers that die, hang or grow. The defaults suit nearly everybody.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Faults")]
pub struct FaultFlags {
    /// How long a worker may take from its start until it is ready, 1s to 1h
    #[arg(long, env = "AKIDB_START_TIMEOUT", value_name = "TIME", default_value = "120s")]
    pub start_timeout: String,

    /// How long a worker that is not ready yet may be silent before it is killed, 30ms to 1h
    ///
    /// Longer than for a ready one: an import may hold the interpreter's lock.
    #[arg(
        long,
        env = "AKIDB_START_HEARTBEAT_TIMEOUT",
        value_name = "TIME",
        default_value = "20s",
        hide_short_help = true
    )]
    pub start_heartbeat_timeout: String,

    /// How long a ready worker may be silent before it is killed, 30ms to 1h. It gives three signs of life in that time
    #[arg(
        long,
        env = "AKIDB_HEARTBEAT_TIMEOUT",
        value_name = "TIME",
        default_value = "3s",
        hide_short_help = true
    )]
    pub heartbeat_timeout: String,

    /// How long a batch may make no progress before its worker is killed, 10ms to 1h, or `auto`
    ///
    /// `auto` is 3s for a worker that computes on a CPU, and 15s for one on a GPU, which another program may hold
    /// meanwhile. A time holds for both. A batch always has ten times what a batch of its tokens took lately.
    #[arg(
        long,
        env = "AKIDB_PROGRESS_TIMEOUT",
        value_name = "TIME|auto",
        default_value = "auto",
        hide_short_help = true
    )]
    pub progress_timeout: String,

    /// How long a worker's answer may stall in the middle before it is killed, 10ms to 1h
    #[arg(
        long,
        env = "AKIDB_STALL_TIMEOUT",
        value_name = "TIME",
        default_value = "1s",
        hide_short_help = true
    )]
    pub stall_timeout: String,

    /// Wait before the second restart in a row, 1ms to 1h. The first is at once; every further wait is twice as long
    #[arg(
        long,
        env = "AKIDB_BACKOFF_FIRST",
        value_name = "TIME",
        default_value = "250ms",
        hide_short_help = true
    )]
    pub backoff_first: String,

    /// Longest wait between two restarts, 1ms to 1h
    #[arg(
        long,
        env = "AKIDB_BACKOFF_LONGEST",
        value_name = "TIME",
        default_value = "30s",
        hide_short_help = true
    )]
    pub backoff_longest: String,

    /// Time within which five deaths of a worker that was not ready, or for want of memory, are a crash loop, 1ms to 1h
    #[arg(
        long,
        env = "AKIDB_CRASH_LOOP_WINDOW",
        value_name = "TIME",
        default_value = "60s",
        hide_short_help = true
    )]
    pub crash_loop_window: String,

    /// Wait between two starts in a crash loop, 1ms to 1h
    #[arg(
        long,
        env = "AKIDB_CRASH_LOOP_WAIT",
        value_name = "TIME",
        default_value = "30s",
        hide_short_help = true
    )]
    pub crash_loop_wait: String,

    /// How long a worker may take to end by itself once it is told to or has closed its socket, 0s to 1h
    #[arg(
        long,
        env = "AKIDB_EXIT_PATIENCE",
        value_name = "TIME",
        default_value = "1s",
        hide_short_help = true
    )]
    pub exit_patience: String,

    /// Memory of a worker above which it is replaced, such as `2GiB`; `none` for no limit
    ///
    /// The successor is ready before the old worker goes, so nobody notices. A limit below what the model needs at
    /// its start is ignored, with a warning.
    #[arg(long, env = "AKIDB_WORKER_MEMORY_LIMIT", value_name = "SIZE|none", default_value = "none")]
    pub worker_memory_limit: String,

    /// How often the memory of the workers is looked at, 10ms to 1h
    #[arg(
        long,
        env = "AKIDB_MEMORY_INTERVAL",
        value_name = "TIME",
        default_value = "1s",
        hide_short_help = true
    )]
    pub memory_interval: String,

    /// Batches after which a worker is replaced, 1 to 10^12; `none` for no limit
    #[arg(
        long,
        env = "AKIDB_WORKER_MAX_BATCHES",
        value_name = "N|none",
        default_value = "none",
        hide_short_help = true
    )]
    pub worker_max_batches: String,

    /// How long a text that two workers died of is refused, and one that a worker died of runs alone, 0s to 24h
    #[arg(
        long,
        env = "AKIDB_POISON_MEMORY",
        value_name = "TIME",
        default_value = "10m",
        hide_short_help = true
    )]
    pub poison_memory: String,
}

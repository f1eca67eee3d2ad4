//! Flags for when to give up on a worker.

use clap::Args;

/// Flags of `serve` for workers that crash, hang or grow. The defaults suit nearly everyone.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Faults")]
pub struct FaultFlags {
    /// How long a worker may take to become ready, 1s to 1h
    #[arg(long, env = "AKIDB_START_TIMEOUT", value_name = "TIME", default_value = "120s")]
    pub start_timeout: String,

    /// How long a starting worker may go without a heartbeat before it is killed, 30ms to 1h
    ///
    /// Longer than for a ready worker, because an import may hold Python's interpreter lock.
    #[arg(
        long,
        env = "AKIDB_START_HEARTBEAT_TIMEOUT",
        value_name = "TIME",
        default_value = "20s",
        hide_short_help = true
    )]
    pub start_heartbeat_timeout: String,

    /// How long a ready worker may go without a heartbeat before it is killed, 30ms to 1h. Workers send three in this time
    #[arg(
        long,
        env = "AKIDB_HEARTBEAT_TIMEOUT",
        value_name = "TIME",
        default_value = "3s",
        hide_short_help = true
    )]
    pub heartbeat_timeout: String,

    /// How long a batch may go without progress before its worker is killed, 10ms to 1h, or `auto`
    ///
    /// `auto` is 3s on a CPU and 15s on a GPU, which another program may occupy. A batch always gets at least ten times as
    /// long as recent batches of its size took.
    #[arg(
        long,
        env = "AKIDB_PROGRESS_TIMEOUT",
        value_name = "TIME|auto",
        default_value = "auto",
        hide_short_help = true
    )]
    pub progress_timeout: String,

    /// How long a worker may stall in the middle of a response frame before it is killed, 10ms to 1h
    #[arg(
        long,
        env = "AKIDB_STALL_TIMEOUT",
        value_name = "TIME",
        default_value = "1s",
        hide_short_help = true
    )]
    pub stall_timeout: String,

    /// Delay before the second restart in a row, 1ms to 1h. The first is immediate; the delay then doubles each time
    #[arg(
        long,
        env = "AKIDB_BACKOFF_FIRST",
        value_name = "TIME",
        default_value = "250ms",
        hide_short_help = true
    )]
    pub backoff_first: String,

    /// Longest delay between two restarts, 1ms to 1h
    #[arg(
        long,
        env = "AKIDB_BACKOFF_LONGEST",
        value_name = "TIME",
        default_value = "30s",
        hide_short_help = true
    )]
    pub backoff_longest: String,

    /// Five failed starts or out-of-memory kills within this time are a crash loop, 1ms to 1h
    #[arg(
        long,
        env = "AKIDB_CRASH_LOOP_WINDOW",
        value_name = "TIME",
        default_value = "60s",
        hide_short_help = true
    )]
    pub crash_loop_window: String,

    /// Delay between two starts in a crash loop, 1ms to 1h
    #[arg(
        long,
        env = "AKIDB_CRASH_LOOP_WAIT",
        value_name = "TIME",
        default_value = "30s",
        hide_short_help = true
    )]
    pub crash_loop_wait: String,

    /// How long a worker may take to exit on its own when asked to, or after closing its socket, 0s to 1h
    #[arg(
        long,
        env = "AKIDB_EXIT_PATIENCE",
        value_name = "TIME",
        default_value = "1s",
        hide_short_help = true
    )]
    pub exit_patience: String,

    /// Replace a worker whose memory exceeds this size, such as `2GiB`; `none` for no limit
    ///
    /// The new worker is ready before the old one stops, so clients notice nothing. A limit below what the model needs at
    /// startup is ignored, with a warning.
    #[arg(long, env = "AKIDB_WORKER_MEMORY_LIMIT", value_name = "SIZE|none", default_value = "none")]
    pub worker_memory_limit: String,

    /// How often to check the memory of the workers, 10ms to 1h
    #[arg(
        long,
        env = "AKIDB_MEMORY_INTERVAL",
        value_name = "TIME",
        default_value = "1s",
        hide_short_help = true
    )]
    pub memory_interval: String,

    /// Replace a worker after this many batches, 1 to 10^12; `none` for no limit
    #[arg(
        long,
        env = "AKIDB_WORKER_MAX_BATCHES",
        value_name = "N|none",
        default_value = "none",
        hide_short_help = true
    )]
    pub worker_max_batches: String,

    /// How long to refuse a text that crashed two workers, and to run one that crashed a worker alone, 0s to 24h
    #[arg(
        long,
        env = "AKIDB_POISON_MEMORY",
        value_name = "TIME",
        default_value = "10m",
        hide_short_help = true
    )]
    pub poison_memory: String,
}

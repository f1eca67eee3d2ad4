//! What is said of a panic: where it was, and never its message, which may quote the text that was read.

/// Name of threads that are expected to panic: whoever started one says what that means.
pub(crate) const EXPECTED_IN: &str = "guarded";

/// From now on a panic is an event in the log.
pub fn log_without_messages() {
    std::panic::set_hook(Box::new(|panic| {
        if std::thread::current().name() == Some(EXPECTED_IN) {
            return;
        }
        let location = panic.location().map(|location| format!("{}:{}", location.file(), location.line()));
        tracing::error!(location, "the code panicked: this is a bug, please report it");
    }));
}

//! How long a request's body is: a request that states it twice is refused (RFC 9112, section 6.3), because a proxy in front
//! may have read it otherwise.

/// Longest header name that is looked for, colon included.
const LONGEST_NAME: usize = "transfer-encoding:".len();

/// Looks for the two headers that say how long a body is, in the bytes of a head as they arrive.
///
/// Hyper drops a `Content-Length` next to a `Transfer-Encoding`, so that a handler cannot see that there were both: what a
/// proxy in front may have understood otherwise.
#[derive(Debug, Default)]
pub(super) struct LengthScan {
    /// The beginning of the current line.
    line: [u8; LONGEST_NAME],
    filled: usize,
    /// Whether a line with something in it was seen; empty ones may stand before a request.
    has_begun: bool,
    has_ended: bool,
    has_length: bool,
    has_encoding: bool,
}

impl LengthScan {
    /// Takes the next bytes; those after the head are left alone.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.has_ended {
                return;
            }
            if *byte == b'\n' {
                self.end_line();
            } else if self.filled < LONGEST_NAME {
                self.line[self.filled] = byte.to_ascii_lowercase();
                self.filled += 1;
            }
        }
    }

    fn end_line(&mut self) {
        let line = &self.line[..self.filled];
        if matches!(line, b"" | b"\r") {
            self.has_ended = self.has_begun;
        } else {
            self.has_begun = true;
            self.has_length |= line.starts_with(b"content-length:");
            self.has_encoding |= line.starts_with(b"transfer-encoding:");
        }
        self.filled = 0;
    }

    /// Whether the head had both.
    pub(super) fn found_both(&self) -> bool {
        self.has_length && self.has_encoding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found_both(head: &str) -> bool {
        let mut scans = [LengthScan::default(), LengthScan::default()];
        scans[0].feed(head.as_bytes());
        head.as_bytes().chunks(1).for_each(|byte| scans[1].feed(byte));
        assert_eq!(scans[0].found_both(), scans[1].found_both(), "{head:?}");
        scans[0].found_both()
    }

    #[test]
    fn two_statements_of_length_are_found_in_any_order_and_case() {
        for head in [
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "\r\n\r\nPOST / HTTP/1.1\r\nTRANSFER-ENCODING:chunked\r\nx: y\r\ncontent-length:1\r\n\r\n",
            "POST / HTTP/1.1\ncontent-length: 1\ntransfer-encoding: chunked\n\n",
        ] {
            assert!(found_both(head), "{head:?}");
        }
    }

    #[test]
    fn one_statement_or_a_second_one_in_a_body_or_a_value_is_not_two() {
        for head in [
            "POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\ncontent-length: 1\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nx: content-length: 1\r\nx-content-length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-lengths: 1\r\n\r\n",
        ] {
            assert!(!found_both(head), "{head:?}");
        }
    }
}

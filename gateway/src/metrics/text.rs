//! The metrics in version 0.0.4 of Prometheus's text, which every scraper reads.
//!
//! It differs from `OpenMetrics` in what stands in comments: a counter is called by the name of its samples, with
//! `_total`; there are no units, no `info` and no end mark; and in a help text quotes are not escaped.

/// Rewrites an `OpenMetrics` text, in which `HELP` stands before `TYPE`.
pub(crate) fn from_open_metrics(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ').map(|(_name, help)| help.replace("\\\"", "\""));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some(help) = help.take() {
                text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_called_by_the_name_of_their_samples() {
        let open_metrics = "# HELP requests Requests of \\\"clients\\\".\n# TYPE requests counter\nrequests_total{status=\"a\"} 1\n\
            # HELP time_seconds Time.\n# TYPE time_seconds histogram\n# UNIT time_seconds seconds\ntime_seconds_sum 0.5\n\
            time_seconds_bucket{le=\"+Inf\"} 1\n# HELP build The program.\n# TYPE build info\nbuild_info{version=\"1\"} 1\n\
            # TYPE depth gauge\ndepth 0\n# TYPE other unknown\nother 1\n# EOF\n";
        let text = "# HELP requests_total Requests of \"clients\".\n# TYPE requests_total counter\nrequests_total{status=\"a\"} 1\n\
            # HELP time_seconds Time.\n# TYPE time_seconds histogram\ntime_seconds_sum 0.5\n\
            time_seconds_bucket{le=\"+Inf\"} 1\n# HELP build_info The program.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n\
            # TYPE depth gauge\ndepth 0\n# TYPE other untyped\nother 1\n";
        assert_eq!(from_open_metrics(open_metrics), text);
    }
}

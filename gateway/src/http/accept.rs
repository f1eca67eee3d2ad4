//! Which form of the metrics a scraper wants, by its `Accept` header.

use hyper::HeaderMap;
use hyper::header::ACCEPT;

/// A form in which metrics can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetricsForm {
    /// Version 0.0.4 of Prometheus's text, which everybody reads.
    Text,
    /// `OpenMetrics` 1.0.0.
    OpenMetrics,
}

impl MetricsForm {
    /// The form that the scraper likes better; where it does not say, or likes none, text.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges: Vec<Range<'_>> =
            values.flat_map(|value| value.split(',')).filter_map(Range::parse).collect();
        let (text, _) = preference(&ranges, "text", "plain", "0.0.4");
        let (open, is_named) = preference(&ranges, "application", "openmetrics-text", "1.0.0");
        if open > text || (open == text && open > 0 && is_named) { Self::OpenMetrics } else { Self::Text }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// One element of an `Accept` header.
struct Range<'a> {
    main: &'a str,
    sub: &'a str,
    version: Option<&'a str>,
    /// Thousandths.
    quality: u32,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (main, sub) = parts.next()?.split_once('/')?;
        let mut range = Self { main, sub, version: None, quality: 1000 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim() {
                name if name.eq_ignore_ascii_case("q") => range.quality = thousandths(value.trim())?,
                name if name.eq_ignore_ascii_case("version") => {
                    range.version = Some(value.trim().trim_matches('"'));
                }
                _ => {}
            }
        }
        Some(range)
    }

    /// How closely it describes a type; `None` when it does not.
    fn closeness(&self, main: &str, sub: &str, version: &str) -> Option<u8> {
        let is_main = self.main.eq_ignore_ascii_case(main);
        match (self.main, self.sub) {
            ("*", "*") => Some(0),
            (_, "*") if is_main => Some(1),
            (_, own) if is_main && own.eq_ignore_ascii_case(sub) => match self.version {
                None => Some(2),
                Some(own) => (own == version).then_some(3),
            },
            _ => None,
        }
    }
}

/// The quality that the closest range gives to a type, and whether it names the type.
fn preference(ranges: &[Range<'_>], main: &str, sub: &str, version: &str) -> (u32, bool) {
    let fitting =
        ranges.iter().filter_map(|range| Some((range.closeness(main, sub, version)?, range.quality)));
    fitting.max().map_or((0, false), |(closeness, quality)| (quality, closeness >= 2))
}

/// A quality from 0 to 1 with up to three digits.
fn thousandths(text: &str) -> Option<u32> {
    let (whole, digits) = text.split_once('.').unwrap_or((text, ""));
    if digits.len() > 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: u32 = format!("{digits:0<3}").parse().ok()?;
    match whole {
        "0" => Some(fraction),
        "1" if fraction == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn the_form_is_the_one_that_is_liked_better() {
        use MetricsForm::{OpenMetrics, Text};
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,\
            text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, wanted) in [
            (prometheus, OpenMetrics),
            ("application/openmetrics-text", OpenMetrics),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"", OpenMetrics),
            ("text/plain, application/openmetrics-text", OpenMetrics),
            ("text/plain;q=0.5, application/openmetrics-text;q=0.500", OpenMetrics),
            ("application/openmetrics-text;q=0.1, */*;q=0.05", OpenMetrics),
            ("application/*, text/plain;q=0.9", OpenMetrics),
            ("", Text),
            ("*/*", Text),
            ("text/*", Text),
            ("text/plain", Text),
            ("text/plain; version=0.0.4", Text),
            ("text/plain;version=0.0.4;q=1,*/*;q=0.1", Text),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Text),
            ("application/openmetrics-text;q=0", Text),
            ("application/openmetrics-text;q=0, */*", Text),
            ("application/openmetrics-text;q=0.4, text/plain;q=0.6", Text),
            ("application/openmetrics-text;version=0.0.1, text/plain;q=0.1", Text),
            ("application/openmetrics-text;version=2.0.0, text/plain;version=0.0.4;q=0.1", Text),
            ("application/openmetrics-text;q=high", Text),
            ("application/openmetrics-text;q=1.5", Text),
            ("application/json", Text),
            (",,;q=1,/", Text),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(MetricsForm::wanted(&headers), wanted, "{accept}");
        }
        assert_eq!(MetricsForm::wanted(&HeaderMap::new()), Text);
        let mut two = HeaderMap::new();
        two.append(ACCEPT, HeaderValue::from_static("text/plain;q=0.1"));
        two.append(ACCEPT, HeaderValue::from_static("application/openmetrics-text"));
        assert_eq!(MetricsForm::wanted(&two), OpenMetrics);
    }
}

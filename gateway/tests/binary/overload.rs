//! More work than the workers can do: what is admitted is answered in time, and the rest is refused at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{self, Gateway};

/// Two workers of 2,500 tokens/s each, and requests that have a second.
fn slow_gateway() -> Gateway {
    let flags = ["--workers", "2", "--request-timeout", "1s"];
    let gateway = Gateway::misbehaving(&json!({"delay_per_token": 0.0004}), &flags);
    gateway.wait_until_ready();
    gateway
}

#[test]
fn under_overload_nothing_that_is_admitted_is_late_and_refusals_come_at_once() {
    let gateway = slow_gateway();
    // 42 tokens a text, 21 texts a request: 882 tokens, of which 5.7 can be computed in a second.
    let text = ["a"; 40].join(" ");
    let texts = vec![text.as_str(); 21];
    let (answered, refused, is_over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..40 {
            let (gateway, texts, text) = (&gateway, &texts, &text);
            let (answered, refused, is_over) = (&answered, &refused, &is_over);
            scope.spawn(move || {
                // Single texts and many are treated alike.
                let texts = if client % 2 == 0 { texts.as_slice() } else { &texts[..1] };
                while !is_over.load(Ordering::Relaxed) {
                    let answer = gateway.embed(texts);
                    if answer.status == 200 {
                        assert_eq!(answer.vectors()[0], support::fake_vector(text));
                        answered.fetch_add(texts.len(), Ordering::Relaxed);
                    } else {
                        assert_eq!(answer.code(), (503, "overloaded".to_owned()));
                        let retry_after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                        assert!((1..=3).contains(&retry_after), "{retry_after}");
                        refused.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_secs(4));
        is_over.store(true, Ordering::Relaxed);
    });
    #[expect(clippy::cast_precision_loss, reason = "the numbers are small")]
    let tokens_per_second = 42.0 * answered.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    assert!(refused.load(Ordering::Relaxed) > 50, "only {refused:?} were refused");
    assert!(tokens_per_second > 0.7 * 5_000.0, "{tokens_per_second} tokens/s were answered");
    assert_eq!(gateway.metric("akidb_requests_rejected_total{code=\"overloaded\"}"), {
        #[expect(clippy::cast_precision_loss, reason = "the number is small")]
        let refused = refused.load(Ordering::Relaxed) as f64;
        refused
    });
    // And as if nothing had been.
    std::thread::sleep(Duration::from_secs(1));
    let started = Instant::now();
    assert_eq!(gateway.vectors(&[&text])[0], support::fake_vector(&text));
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    assert_eq!(gateway.metric("akidb_embedding_queue_tokens"), 0.0);
}

/// Seconds that a fake worker takes for a token: two of them do 5,000 tokens/s.
const SECONDS_PER_TOKEN: f64 = 0.0004;
const CAPACITY: f64 = 5000.0;

/// Two workers with these flags, and requests that have so long.
fn gateway_with(misbehaviour: &Value, deadline: Duration, flags: &[&str]) -> Gateway {
    let timeout = format!("{}ms", deadline.as_millis());
    let flags = [&["--workers", "2", "--request-timeout", &timeout], flags].concat();
    let gateway = Gateway::misbehaving(misbehaviour, &flags);
    gateway.wait_until_ready();
    gateway
}

fn even_speed() -> Value {
    json!({"delay_per_token": SECONDS_PER_TOKEN})
}

/// What came of requests that were sent whether others were answered or not.
#[derive(Debug, Default)]
struct Figures {
    answered: usize,
    /// Admitted, and not answered with vectors.
    too_late: usize,
    refused: usize,
    /// Tokens answered in time, for each second of the whole load.
    tokens_per_second: f64,
    slowest_refusal: Duration,
}

/// Tokens of the texts that are offered.
const TOKENS: usize = 42;

/// Offers this many tokens per second for some time, in requests of five texts.
fn offer(gateway: &Gateway, tokens_per_second: f64, length: Duration) -> Figures {
    offer_requests(gateway, 5, tokens_per_second, length)
}

/// Does so in requests of this many texts.
fn offer_requests(gateway: &Gateway, texts: usize, tokens_per_second: f64, length: Duration) -> Figures {
    let text = ["a"; TOKENS - 2].join(" ");
    let tokens_of_request = u32::try_from(texts * TOKENS).unwrap();
    let texts = vec![text.as_str(); texts];
    let gap = Duration::from_secs_f64(f64::from(tokens_of_request) / tokens_per_second);
    let started = Instant::now();
    let mut figures = Figures::default();
    let mut refusals = Vec::new();
    std::thread::scope(|scope| {
        let mut clients = Vec::new();
        let mut next = started;
        while next < started + length {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            next += gap;
            let texts = &texts;
            clients.push(scope.spawn(move || {
                let sent = Instant::now();
                (gateway.embed(texts), sent.elapsed())
            }));
        }
        for client in clients {
            let (answer, took) = client.join().unwrap();
            match answer.status {
                200 => {
                    assert_eq!(answer.vectors()[0], support::fake_vector(&text));
                    figures.answered += 1;
                }
                504 => figures.too_late += 1,
                _ => {
                    assert_eq!(answer.code(), (503, "overloaded".to_owned()));
                    figures.refused += 1;
                    refusals.push(took);
                }
            }
        }
    });
    #[expect(clippy::cast_precision_loss, reason = "the numbers are small")]
    let tokens = (figures.answered * texts.len() * TOKENS) as f64;
    figures.tokens_per_second = tokens / length.as_secs_f64();
    refusals.sort_unstable();
    figures.slowest_refusal = refusals.get(refusals.len() * 9 / 10).copied().unwrap_or_default();
    figures
}

/// The figures of an overload: little is late, and most of what could be computed was answered. One that is late for another
/// reason must not decide.
#[track_caller]
fn assert_is_served_in_time(figures: &Figures, capacity: f64) {
    let admitted = figures.answered + figures.too_late;
    assert!(admitted >= 20, "too few were admitted to say anything: {figures:?}");
    assert!(figures.too_late * 10 <= admitted, "too much is late: {figures:?}");
    assert!(figures.tokens_per_second >= 0.6 * capacity, "less than {capacity} tokens/s: {figures:?}");
    assert!(figures.refused > 0, "{figures:?}");
    assert!(figures.slowest_refusal < Duration::from_millis(300), "{figures:?}");
}

#[test]
fn overload_is_served_in_time_however_many_batches_wait_at_a_worker() {
    for batches in ["1", "16", "64"] {
        let flags = ["--max-inflight-per-worker", batches];
        let gateway = gateway_with(&even_speed(), Duration::from_secs(1), &flags);
        let figures = offer(&gateway, 4.0 * CAPACITY, Duration::from_secs(3));
        assert_is_served_in_time(&figures, CAPACITY);
    }
}

#[test]
fn overload_is_served_in_time_after_all_workers_became_slower_whatever_the_size_of_a_batch() {
    for size in ["64", "auto"] {
        let gateway = gateway_with(&even_speed(), Duration::from_secs(1), &["--max-batch-tokens", size]);
        offer(&gateway, 3.0 * CAPACITY, Duration::from_secs(1));
        gateway.misbehave(&json!({"delay_per_token": 8.0 * SECONDS_PER_TOKEN}));
        offer_requests(&gateway, 1, CAPACITY, Duration::from_secs(2));
        let figures = offer_requests(&gateway, 1, CAPACITY, Duration::from_secs(3));
        assert_is_served_in_time(&figures, CAPACITY / 8.0);
    }
}

#[test]
fn overload_is_served_in_time_after_one_worker_became_ten_times_slower() {
    let gateway = gateway_with(&even_speed(), Duration::from_secs(1), &[]);
    offer(&gateway, 3.0 * CAPACITY, Duration::from_secs(1));
    let slow = json!({"1": {"delay_per_token": 10.0 * SECONDS_PER_TOKEN}});
    gateway.misbehave(&json!({"delay_per_token": SECONDS_PER_TOKEN, "workers": slow}));
    offer(&gateway, 3.0 * CAPACITY, Duration::from_secs(2));
    let figures = offer(&gateway, 3.0 * CAPACITY, Duration::from_secs(3));
    assert_is_served_in_time(&figures, 0.55 * CAPACITY);
    // And back: the speed is found out although the estimate is too low.
    gateway.misbehave(&even_speed());
    offer(&gateway, 3.0 * CAPACITY, Duration::from_secs(2));
    let figures = offer(&gateway, 3.0 * CAPACITY, Duration::from_secs(3));
    assert_is_served_in_time(&figures, CAPACITY);
}

#[test]
fn overload_is_served_in_time_after_small_requests_of_workers_that_share_their_cores() {
    // One busy worker alone is as fast as two, and small batches are four times faster than large ones.
    let cores = std::thread::available_parallelism().unwrap().get();
    let speed = |factor: f64| json!({"delay_per_token": factor * SECONDS_PER_TOKEN / 2.0, "cores": cores});
    let gateway = gateway_with(&speed(1.0), Duration::from_secs(1), &[]);
    let capacity = if cores == 1 { 2.0 * CAPACITY } else { CAPACITY };
    offer(&gateway, 3.0 * capacity, Duration::from_secs(1));
    gateway.misbehave(&speed(0.2));
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(6) {
        assert_eq!(gateway.embed(&["a b c d e f g h i j k l"]).status, 200);
    }
    gateway.misbehave(&speed(1.0));
    let figures = offer(&gateway, 3.0 * capacity, Duration::from_secs(2));
    assert_is_served_in_time(&figures, capacity);
}

#[test]
fn overload_is_served_in_time_when_requests_have_little_time() {
    for max_batch_tokens in ["auto", "2000"] {
        let flags = ["--max-batch-tokens", max_batch_tokens];
        // The warm-up seems to be fast: a batch as large as it suggests would take all the time.
        let behaviour = json!({"delay_per_token": SECONDS_PER_TOKEN, "warm_up": [2000, 0.1]});
        let gateway = gateway_with(&behaviour, Duration::from_millis(500), &flags);
        let figures = offer(&gateway, 4.0 * CAPACITY, Duration::from_secs(3));
        assert_is_served_in_time(&figures, CAPACITY);
    }
}

#[test]
fn before_any_worker_was_ready_no_more_is_admitted_than_can_be_computed_by_a_cautious_guess() {
    let flags = ["--workers", "2", "--request-timeout", "6s"];
    let behaviour = json!({"start_delay": 3, "delay_per_token": 0.001, "warm_up": [1000, 0.05]});
    let gateway = Gateway::misbehaving(&behaviour, &flags);
    // 16,800 tokens, which take more than 8 s.
    let figures = offer(&gateway, 16_800.0, Duration::from_secs(1));
    assert!(figures.answered > 0 && figures.too_late == 0 && figures.refused > 0, "{figures:?}");
}

#[test]
fn a_request_that_cannot_be_done_in_its_time_alone_is_refused_once_the_speed_is_measured() {
    let gateway = gateway_with(&even_speed(), Duration::from_secs(1), &[]);
    let text = ["a"; 60].join(" ");
    let ask = |texts: usize| gateway.embed(&vec![text.as_str(); texts]);
    // 124,000 tokens: by the warm-up it cannot be done, but that proves nothing.
    let answer = ask(2000);
    assert_eq!(answer.code(), (503, "overloaded".to_owned()));
    assert!(answer.header("retry-after").is_some());
    // Some of it was computed, to find out.
    gateway
        .eventually("nothing is left of it", |gateway| gateway.metric("akidb_embedding_queue_tokens") == 0.0);
    std::thread::sleep(Duration::from_millis(500));
    let started = Instant::now();
    let answer = ask(2000);
    assert_eq!(answer.code(), (400, "deadline_too_short".to_owned()));
    assert!(answer.header("retry-after").is_none());
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    let needed: f64 = message.split_once("about ").unwrap().1.split_once(" s ").unwrap().0.parse().unwrap();
    assert!((15.0..40.0).contains(&needed), "{message}");
    // What can be done is admitted: 2,480 tokens take half of the time.
    assert_eq!(ask(40).status, 200);
}

#[test]
fn an_estimate_that_refuses_every_request_is_found_out() {
    let slow = json!({"delay_per_token": 40.0 * SECONDS_PER_TOKEN});
    let gateway = gateway_with(&slow, Duration::from_secs(2), &[]);
    let text = ["a"; 60].join(" ");
    let ask = || gateway.embed(&vec![text.as_str(); 40]).code();
    assert_eq!(ask(), (503, "overloaded".to_owned()));
    gateway.eventually("the speed is known", |_| ask().0 == 400);
    gateway.misbehave(&even_speed());
    // Nobody sends anything smaller.
    gateway.eventually("it is admitted", |_| ask().0 == 200);
}

#[test]
fn the_queue_is_bounded_in_tokens_whatever_time_requests_have() {
    let flags = ["--workers", "1", "--max-queue-tokens", "100", "--max-batch-tokens", "1"];
    let gateway = Gateway::misbehaving(&json!({"delay": 0.3}), &flags);
    gateway.wait_until_ready();
    let text = ["a"; 40].join(" ");
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| gateway.embed(&[&text]).status)).collect();
        let statuses: Vec<u16> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        let refused = statuses.iter().filter(|status| **status == 503).count();
        assert!((4..=6).contains(&refused), "{statuses:?}");
        assert!(statuses.iter().all(|status| *status == 200 || *status == 503), "{statuses:?}");
    });
}

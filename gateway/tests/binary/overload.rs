//! More work than the workers can do: what is admitted is answered in time, and the rest is refused at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

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

#[test]
fn a_request_that_no_queue_holds_back_is_admitted_however_large() {
    let gateway = slow_gateway();
    let text = ["a"; 60].join(" ");
    // 124,000 tokens: it cannot be in time, and is told so when its time is over.
    let answer = gateway.embed(&vec![text.as_str(); 2000]);
    assert_eq!(answer.code(), (504, "deadline_exceeded".to_owned()));
    gateway.eventually("what is left of it is dropped", |gateway| {
        gateway.metric("akidb_embedding_queue_tokens") == 0.0
    });
    assert!(gateway.metric("akidb_expired_texts_total") > 1000.0);
    assert_eq!(gateway.embed(&["a"]).status, 200);
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

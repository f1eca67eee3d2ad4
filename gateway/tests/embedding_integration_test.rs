//! The library against real MLX workers.
//!
//! `AKIDB_TEST_MODEL` names another model (a path, say), `AKIDB_TEST_SERVED_MODEL_NAME` its name.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use akidb_gateway::manager::Config;
use akidb_gateway::{EmbedRequest, EmbeddingManager, model, pool, scheduler, supervisor};

async fn manager(workers: usize, max_batch_tokens: Option<usize>) -> Arc<EmbeddingManager> {
    let config = Config {
        model: model::Config {
            model: std::env::var("AKIDB_TEST_MODEL").unwrap_or_else(|_| support::MINILM.to_owned()),
            served_name: std::env::var("AKIDB_TEST_SERVED_MODEL_NAME").ok(),
            ..model::Config::default()
        },
        scheduler: scheduler::Config { max_batch_tokens, ..scheduler::Config::default() },
        pool: pool::Config { max_inflight_per_worker: 2, ..pool::Config::default() },
        supervisor: supervisor::Config { workers: Some(workers), ..supervisor::Config::default() },
        python: Some(support::python()),
        request_timeout: Duration::from_secs(120),
        ..Config::default()
    };
    let manager = EmbeddingManager::new(config).await.unwrap();
    manager.ready().await.unwrap();
    Arc::new(manager)
}

/// Sends one text per request, all at once, and checks that each gets its own vector.
async fn embed_concurrently(manager: &Arc<EmbeddingManager>, requests: usize) {
    let text = |request: usize| format!("Text number {request} of a concurrent test.");
    let tasks: Vec<_> = (0..requests)
        .map(|request| {
            let manager = Arc::clone(manager);
            tokio::spawn(async move { manager.embed(vec![text(request)]).await })
        })
        .collect();
    let mut vectors = Vec::new();
    for task in tasks {
        vectors.extend(task.await.unwrap().unwrap());
    }
    let alone = manager.embed((0..requests).map(text).collect()).await.unwrap();
    assert_eq!(vectors.len(), requests);
    for (request, (vector, expected)) in vectors.iter().zip(&alone).enumerate() {
        assert_eq!(vector.len(), manager.model_info().dimension);
        // As near as a batch and single texts are on every device.
        assert!(support::cosine(vector, expected) > 0.9999, "request {request} got another vector");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_concurrent_embedding_requests() {
    let manager = manager(2, None).await;
    embed_concurrently(&manager, 10).await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_gil_semaphore_queuing() {
    // Batches of one text, and two workers with two permits each: sixteen of twenty requests have to wait.
    let manager = manager(2, Some(1)).await;
    let watcher = tokio::spawn({
        let manager = Arc::clone(&manager);
        async move {
            let mut deepest = 0.0_f64;
            let mut most_in_flight = 0;
            loop {
                deepest = deepest.max(metric(&manager, "akidb_embedding_queue_depth"));
                let in_flight = manager.workers().iter().map(|worker| worker.in_flight).sum();
                most_in_flight = most_in_flight.max(in_flight);
                if metric(&manager, "akidb_embedding_requests_total{status=\"success\"}") >= 20.0 {
                    return (deepest, most_in_flight);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    embed_concurrently(&manager, 20).await;
    let (deepest, most_in_flight) = watcher.await.unwrap();
    assert!(deepest >= 8.0, "at most {deepest} requests were queued");
    assert!(most_in_flight <= 4, "{most_in_flight} batches were in flight with four permits");
    let waited = metric(&manager, "akidb_embedding_gil_wait_seconds_count");
    let at_once = metric(&manager, "akidb_embedding_gil_wait_seconds_bucket{le=\"0.001\"}");
    assert!(waited - at_once >= 8.0, "only {} of {waited} requests waited for a permit", waited - at_once);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_embedding_error_handling() {
    let manager = manager(1, None).await;
    let error = manager.embed(Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("empty"), "{error}");
    let error = manager.embed(vec!["first".to_owned(), String::new()]).await.unwrap_err();
    assert!(error.to_string().contains("empty") && error.to_string().contains('1'), "{error}");

    let long = EmbedRequest::new(vec!["word ".repeat(1000)]);
    let embeddings = manager.embed_request(long).await.unwrap();
    let max_tokens = manager.model_info().max_tokens as u64;
    assert!(embeddings.total_tokens <= max_tokens);
    assert_eq!(embeddings.truncated, usize::from(max_tokens < 1000));
    let length: f64 = embeddings.vectors[0].iter().map(|number| f64::from(*number).powi(2)).sum();
    assert!((length - 1.0).abs() < 1e-5, "the vector has length {length}");
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_model_info() {
    let manager = manager(1, None).await;
    let info = manager.model_info();
    assert!(info.max_tokens > 0);
    if std::env::var_os("AKIDB_TEST_MODEL").is_none() {
        assert_eq!((info.model.as_str(), info.dimension, info.max_tokens), (support::MINILM, 384, 256));
    }
    let vectors = manager.embed(vec!["Hello world".to_owned()]).await.unwrap();
    assert_eq!(vectors[0].len(), info.dimension);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_a_dropped_manager_ends_its_workers() {
    let manager = manager(2, None).await;
    let workers: Vec<u32> = manager.workers().iter().filter_map(|worker| worker.pid).collect();
    assert_eq!(workers.len(), 2);
    drop(manager);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(workers.iter().all(|pid| !support::is_alive(*pid)));
}

fn metric(manager: &EmbeddingManager, name: &str) -> f64 {
    let text = manager.metrics_text();
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {text}"))
}

//! Whether the loops that must never stand still turn. A leaf.
//!
//! A loop that waits for work looks like one that hangs. So each is asked now and then, and answers from its own task: one
//! that is idle does so at once, one that is stuck in the middle of something, or has ended, does not.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// The loops of one gateway. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heart {
    loops: Arc<Mutex<Vec<Loop>>>,
}

#[derive(Debug, Clone)]
struct Loop {
    name: &'static str,
    questions: mpsc::Sender<oneshot::Sender<()>>,
}

impl Heart {
    /// Watches a loop from now on: the future is to be spawned in the place of `work`, and answers from its task.
    pub(crate) fn watch<T, F: Future<Output = T>>(
        &self,
        name: &'static str,
        work: F,
    ) -> impl Future<Output = T> + use<T, F> {
        let (questions, mut asked) = mpsc::channel::<oneshot::Sender<()>>(1);
        self.loops.lock().unwrap_or_else(PoisonError::into_inner).push(Loop { name, questions });
        async move {
            let mut work = pin!(work);
            loop {
                tokio::select! {
                    output = &mut work => return output,
                    Some(answer) = asked.recv() => {
                        let _ = answer.send(());
                    }
                }
            }
        }
    }

    /// The names of the loops, without doubles.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.loops().iter().map(|watched| watched.name).collect();
        names.dedup();
        names
    }

    /// Asks every loop at once; the error names one that has not answered in time.
    pub(crate) async fn check(&self, patience: Duration) -> Result<(), &'static str> {
        let ask = |watched: Loop| async move {
            let (sender, answer) = oneshot::channel();
            let asked = async { watched.questions.send(sender).await.is_ok() && answer.await.is_ok() };
            match tokio::time::timeout(patience, asked).await {
                Ok(true) => Ok(()),
                Ok(false) | Err(_) => Err(watched.name),
            }
        };
        futures_util::future::join_all(self.loops().into_iter().map(ask)).await.into_iter().collect()
    }

    fn loops(&self) -> Vec<Loop> {
        self.loops.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    #[tokio::test(start_paused = true)]
    async fn a_heart_without_loops_and_one_whose_loops_wait_are_well() {
        let heart = Heart::default();
        assert_eq!(heart.check(PATIENCE).await, Ok(()));
        tokio::spawn(heart.watch("idle", std::future::pending::<()>()));
        tokio::spawn(heart.watch("ticking", async {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }));
        for _ in 0..3 {
            assert_eq!(heart.check(PATIENCE).await, Ok(()));
        }
        assert_eq!(heart.names(), ["idle", "ticking"]);
    }

    #[tokio::test]
    async fn a_loop_that_has_ended_is_named() {
        let heart = Heart::default();
        tokio::spawn(heart.watch("idle", std::future::pending::<()>()));
        let ended = tokio::spawn(heart.watch("short", async { 7 }));
        assert_eq!(ended.await.unwrap(), 7);
        assert_eq!(heart.check(PATIENCE).await, Err("short"));
        let heart = Heart::default();
        let panicked = tokio::spawn(heart.watch("panicking", async { panic!("for the test") }));
        assert!(panicked.await.is_err());
        assert_eq!(heart.check(PATIENCE).await, Err("panicking"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn a_loop_that_is_stuck_is_named_until_it_goes_on() {
        let heart = Heart::default();
        let ((hold, held), (sender, is_stuck)) = (std::sync::mpsc::channel::<()>(), oneshot::channel());
        tokio::spawn(heart.watch("stuck", async move {
            let _ = sender.send(());
            let _ = held.recv();
            std::future::pending::<()>().await;
        }));
        is_stuck.await.unwrap();
        assert_eq!(heart.check(PATIENCE).await, Err("stuck"));
        drop(hold);
        assert_eq!(heart.check(Duration::from_secs(20)).await, Ok(()));
    }
}

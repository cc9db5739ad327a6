//! How slow a client may be, in both directions, in one rule: it has so much
//! time; waiting for it uses that up, and what it sends or takes gives some back.
//! So neither a pause nor a rate below the least one can go on for ever, and
//! time in which nobody waits for the client, because a script is slower, costs
//! it nothing.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout};

/// What a client is given.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The longest wait.
    pub most: Duration,
    /// The bytes that give a second of it back; 0: any byte gives back all.
    pub rate: u64,
}

/// What is left of it.
pub struct Budget {
    patience: Patience,
    left: Duration,
}

impl Patience {
    pub fn begin(self) -> Budget {
        Budget {
            patience: self,
            left: self.most,
        }
    }
}

impl Budget {
    /// Waits for the client; `None` when there is nothing left.
    pub async fn wait<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        self.wait_most(Duration::MAX, work).await
    }

    /// The same, but not longer than `most`. It need not be the end.
    pub async fn wait_most<T>(
        &mut self,
        most: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let left = self.left.min(most);
        let _wait = Wait {
            budget: self,
            began: Instant::now(),
        };
        timeout(left, work).await.ok()
    }

    pub fn is_used_up(&self) -> bool {
        self.left.is_zero()
    }

    /// The client has sent or taken so much.
    pub fn earn(&mut self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let Patience { most, rate } = self.patience;
        let earned = match bytes.saturating_mul(1_000_000).checked_div(rate) {
            Some(microseconds) => Duration::from_micros(microseconds),
            None => most,
        };
        self.left = self.left.saturating_add(earned).min(most);
    }
}

/// A wait costs what it takes, also one that is given up.
struct Wait<'a> {
    budget: &'a mut Budget,
    began: Instant,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let left = &mut self.budget.left;
        *left = left.saturating_sub(self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn budget(seconds: u64, rate: u64) -> Budget {
        let most = Duration::from_secs(seconds);
        Patience { most, rate }.begin()
    }

    /// How many seconds a client holds out that sends `bytes` each `pause`, at
    /// most a day.
    fn endures(mut budget: Budget, pause: u64, bytes: u64) -> u64 {
        const DAY: u64 = 86_400;
        let mut seconds = 0;
        while seconds < DAY {
            let left = budget.left;
            budget.left = left.saturating_sub(Duration::from_secs(pause));
            if budget.is_used_up() {
                return seconds + left.as_secs();
            }
            seconds += pause;
            budget.earn(bytes);
        }
        DAY
    }

    #[test]
    fn a_client_is_given_time_for_what_it_sends() {
        for (pause, bytes, endured) in [
            // At the least rate, in pauses of any length below the limit.
            (1, 100, 86_400),
            (59, 5_900, 86_400),
            // A pause as long as the limit.
            (60, 1 << 40, 60),
            // A byte now and then.
            (59, 1, 60),
            (1, 1, 60),
            // Half the rate lasts twice as long.
            (1, 50, 119),
        ] {
            let found = endures(budget(60, 100), pause, bytes);
            assert_eq!(found, endured, "{bytes} bytes each {pause} s");
        }
        assert_eq!(endures(budget(60, 0), 59, 1), 86_400, "no least rate");
    }

    #[test]
    fn much_at_once_is_no_credit_for_later() {
        let mut budget = budget(60, 100);
        budget.earn(u64::MAX);
        assert_eq!(budget.left, Duration::from_secs(60));
    }

    #[tokio::test]
    async fn waiting_costs_what_it_takes_even_if_it_is_given_up() {
        let moment = Duration::from_millis(20);
        let mut budget = budget(3600, 1);
        assert!(timeout(moment, budget.wait(pending::<()>())).await.is_err());
        let after_one = budget.left;
        assert!(after_one <= budget.patience.most.checked_sub(moment).unwrap());
        assert!(budget.wait_most(moment, pending::<()>()).await.is_none());
        assert!(budget.left <= after_one.checked_sub(moment).unwrap());
        assert!(!budget.is_used_up());
        assert_eq!(budget.wait(async { 1 }).await, Some(1));
        budget.left = moment;
        assert!(budget.wait(pending::<()>()).await.is_none());
        assert!(budget.is_used_up());
    }
}

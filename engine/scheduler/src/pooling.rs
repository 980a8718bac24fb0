//! From hidden states to one vector for a text.

/// Which of a text's hidden states make up its vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The last token's: it has seen all others.
    Last,
    /// The mean over all tokens.
    Mean,
}

/// The hidden states of one sequence, as far as they have come.
#[derive(Debug)]
pub(crate) struct Pool {
    pooling: Pooling,
    /// Tokens of the text.
    len: u32,
    /// Positions whose states were asked for.
    planned: u32,
    taken: u32,
    sum: Vec<f64>,
}

impl Pool {
    pub(crate) fn new(pooling: Pooling, len: u32) -> Self {
        Self { pooling, len, planned: 0, taken: 0, sum: Vec::new() }
    }

    /// Whether the state at this position is to be read out, now that it is fed. A sequence that
    /// gave up its blocks feeds its tokens again; their states count once.
    pub(crate) fn asks(&mut self, position: u32) -> bool {
        let wanted = match self.pooling {
            Pooling::Last => position + 1 == self.len,
            Pooling::Mean => true,
        };
        let asks = wanted && position >= self.planned;
        if asks {
            self.planned = position + 1;
        }
        asks
    }

    /// Takes the next state. None where it is none (NaN, infinity), or of another length than the
    /// ones before.
    pub(crate) fn take(&mut self, state: &[f32]) -> Option<()> {
        if state.iter().any(|value| !value.is_finite()) {
            return None;
        }
        if self.taken == 0 {
            self.sum = vec![0.0; state.len()];
        }
        if self.sum.len() != state.len() {
            return None;
        }
        for (sum, value) in self.sum.iter_mut().zip(state) {
            *sum += f64::from(*value);
        }
        self.taken += 1;
        Some(())
    }

    /// The vector, once every state has come.
    pub(crate) fn vector(&self) -> Option<Vec<f32>> {
        let all = match self.pooling {
            Pooling::Last => 1,
            Pooling::Mean => self.len,
        };
        let mean = |sum: &f64| (sum / f64::from(all)) as f32;
        (self.taken == all).then(|| self.sum.iter().map(mean).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_over_each_position_once() {
        let mut pool = Pool::new(Pooling::Mean, 3);
        assert!(pool.asks(0) && pool.asks(1) && !pool.asks(0) && !pool.asks(1) && pool.asks(2));
        for state in [[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]] {
            assert_eq!(pool.vector(), None);
            pool.take(&state).unwrap();
        }
        assert_eq!(pool.vector(), Some(vec![3.0, 1.0]));
    }

    #[test]
    fn what_is_no_number_is_no_state() {
        let mut pool = Pool::new(Pooling::Last, 3);
        assert!(!pool.asks(0) && !pool.asks(1) && pool.asks(2));
        assert_eq!(pool.take(&[1.0, f32::NAN]), None);
        assert_eq!(pool.take(&[f32::INFINITY]), None);
        assert_eq!(pool.vector(), None);
    }
}

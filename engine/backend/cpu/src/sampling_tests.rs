use super::*;

fn hot() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::greedy() }
}

fn pick(logits: &[f32], want: &Sampling, position: u32) -> u32 {
    sample(&mut logits.to_vec(), want, &History::default(), position).unwrap().token.0
}

/// Shares of the tokens over many positions.
fn shares(logits: &[f32], want: &Sampling) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for position in 0..20_000 {
        counts[pick(logits, want, position) as usize] += 1.0 / 20_000.0;
    }
    counts
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    assert_eq!(pick(&[0.0, 3.0, 3.0, f32::NEG_INFINITY], &Sampling::greedy(), 0), 1);
}

#[test]
fn what_is_no_distribution_has_no_token() {
    let impossible = [f32::NEG_INFINITY; 3];
    for logits in [[f32::NAN; 3], [0.0, 1.0, f32::NAN], [0.0, f32::INFINITY, 0.0], impossible] {
        for want in [Sampling::greedy(), hot(), Sampling { logprobs: Some(2), ..hot() }] {
            let sampled = sample(&mut logits.to_vec(), &want, &History::default(), 0);
            assert_eq!(sampled, None, "{logits:?}");
        }
    }
}

#[test]
fn the_same_seed_and_position_draw_the_same_token() {
    let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32 * 0.1).collect();
    let run = |seed| -> Vec<u32> {
        (0..50).map(|p| pick(&logits, &Sampling { seed, ..hot() }, p)).collect()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn draws_follow_the_softmax_at_the_temperature() {
    let logits = [1.0, 0.0, -1.0];
    for temperature in [0.5f32, 1.0, 2.0] {
        let weights: Vec<f64> =
            logits.iter().map(|l| (f64::from(*l) / f64::from(temperature)).exp()).collect();
        let total: f64 = weights.iter().sum();
        let shares = shares(&logits, &Sampling { temperature, ..hot() });
        for (share, weight) in shares.iter().zip(&weights) {
            assert!((share - weight / total).abs() < 0.02, "{share} at {temperature}");
        }
    }
}

#[test]
fn top_k_top_p_and_min_p_leave_only_their_tokens() {
    // Probabilities 0.5, 0.3, 0.15, 0.05 in mixed order.
    let logits = [0.15f32, 0.5, 0.05, 0.3].map(f32::ln);
    let left = |want: Sampling| -> Vec<usize> {
        let shares = shares(&logits, &want);
        (0..4).filter(|i| shares[*i] > 0.0).collect()
    };
    assert_eq!(left(hot()), [0, 1, 2, 3]);
    assert_eq!(left(Sampling { top_k: 2, ..hot() }), [1, 3]);
    assert_eq!(left(Sampling { top_p: 0.7, ..hot() }), [1, 3]);
    assert_eq!(left(Sampling { top_p: 0.0, ..hot() }), [1]);
    assert_eq!(left(Sampling { min_p: 0.25, ..hot() }), [0, 1, 3]);
}

#[test]
fn top_p_over_a_flat_vocabulary_keeps_its_share() {
    let logits = vec![0.0; 1000];
    let shares = shares(&logits, &Sampling { top_p: 0.5, ..hot() });
    let kept = shares.iter().filter(|s| **s > 0.0).count();
    assert!((480..=501).contains(&kept), "{kept}");
}

#[test]
fn penalties_push_down_what_was_said() {
    let mut history = History::default();
    history.reset(&[TokenId(2)]);
    history.push(TokenId(0));
    history.push(TokenId(0));
    let after = |want: Sampling| {
        let mut logits = vec![4.0, 3.0, 3.5];
        adjust(&mut logits, &want, &history);
        logits
    };
    let base = Sampling::greedy;
    assert_eq!(after(Sampling { presence_penalty: 1.0, ..base() }), [3.0, 3.0, 3.5]);
    assert_eq!(after(Sampling { frequency_penalty: 1.0, ..base() }), [2.0, 3.0, 3.5]);
    // The repetition penalty counts the prompt too.
    assert_eq!(after(Sampling { repetition_penalty: 2.0, ..base() }), [2.0, 3.0, 1.75]);
}

#[test]
fn a_mask_outweighs_every_bias() {
    let want = Sampling {
        bias: vec![(TokenId(0), 1000.0), (TokenId(2), f32::NEG_INFINITY)],
        mask: Some(vec![0b110]),
        ..hot()
    };
    assert_eq!(pick(&[5.0, 1.0, 9.0], &want, 0), 1);
    // All that it allows made impossible: still one of those.
    let want =
        Sampling { bias: vec![(TokenId(1), f32::NEG_INFINITY)], mask: Some(vec![2]), ..want };
    assert_eq!(pick(&[5.0, 1.0, 9.0], &want, 0), 1);
}

#[test]
fn logprobs_are_those_of_the_plain_softmax() {
    let want = Sampling { logprobs: Some(2), ..Sampling { temperature: 0.2, ..hot() } };
    let logits = [0.2f32, 0.5, 0.3].map(f32::ln);
    let out = sample(&mut logits.to_vec(), &want, &History::default(), 3).unwrap();
    let ids: Vec<u32> = out.top.iter().map(|(t, _)| t.0).collect();
    assert_eq!(ids, [1, 2]);
    assert!((out.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
    assert!((out.logprob.unwrap() - logits[out.token.0 as usize]).abs() < 1e-6);
}

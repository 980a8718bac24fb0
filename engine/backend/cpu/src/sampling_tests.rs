use super::*;

fn hot() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::greedy() }
}

fn chosen(logits: &[f32], want: &Sampling, position: u32) -> Option<SampledToken> {
    sample(&mut logits.to_vec(), want, &History::default(), &[], position, &mut Scratch::default())
}

fn pick(logits: &[f32], want: &Sampling, position: u32) -> u32 {
    chosen(logits, want, position).unwrap().token.0
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
            assert_eq!(chosen(&logits, &want, 0), None, "{logits:?}");
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
    history.reset(&[TokenId(2)], &[]);
    history.push(TokenId(0));
    history.push(TokenId(0));
    let after = |want: Sampling| {
        let mut logits = vec![4.0, 3.0, 3.5];
        adjust(&mut logits, &want, &history, &[]);
        logits
    };
    let base = Sampling::greedy;
    assert_eq!(after(Sampling { presence_penalty: 1.0, ..base() }), [3.0, 3.0, 3.5]);
    assert_eq!(after(Sampling { frequency_penalty: 1.0, ..base() }), [2.0, 3.0, 3.5]);
    // The repetition penalty counts the prompt too.
    assert_eq!(after(Sampling { repetition_penalty: 2.0, ..base() }), [2.0, 3.0, 1.75]);
}

#[test]
fn guesses_are_penalised_as_if_they_had_been_sampled() {
    let texts: [(&[u32], &[u32]); 4] =
        [(&[2, 3], &[]), (&[2], &[0, 0]), (&[], &[1]), (&[0, 1, 2], &[3, 1])];
    for (prompt, sampled) in texts {
        for guesses in [&[][..], &[4], &[0, 0, 1], &[5, 2, 5, 0]] {
            let tokens = |ids: &[u32]| ids.iter().copied().map(TokenId).collect::<Vec<_>>();
            let want = Sampling {
                presence_penalty: 0.3,
                frequency_penalty: 0.7,
                repetition_penalty: 1.3,
                ..Sampling::greedy()
            };
            let logits = vec![4.0, -3.0, 3.5, 0.1, 2.0, -1.0];
            let mut history = History::default();
            history.reset(&tokens(prompt), &tokens(sampled));
            let inputs: Vec<Input> = tokens(guesses).into_iter().map(Input::Host).collect();
            let mut guessed = logits.clone();
            adjust(&mut guessed, &want, &history, &inputs);
            tokens(guesses).into_iter().for_each(|token| history.push(token));
            let mut sampled = logits;
            adjust(&mut sampled, &want, &history, &[]);
            assert_eq!(guessed, sampled);
        }
    }
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
    let out = chosen(&logits, &want, 3).unwrap();
    let ids: Vec<u32> = out.top.iter().map(|(t, _)| t.0).collect();
    assert_eq!(ids, [1, 2]);
    assert!((out.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
    assert!((out.logprob.unwrap() - logits[out.token.0 as usize]).abs() < 1e-6);
}

#[test]
fn scratch_that_others_used_changes_no_draw() {
    let mut scratch = Scratch::default();
    let noise = |seed: u64, i: u32| uniform(&Sampling { seed, ..Sampling::greedy() }, i) as f32;
    for seed in 0..400u64 {
        // Vocabularies of all sizes, flat and steep, some with impossible tokens.
        let vocab = 1 + (noise(seed, 0) * 900.0) as u32;
        let steep = 12.0 * noise(seed, 1);
        let mut logits: Vec<f32> = (0..vocab).map(|i| steep * noise(seed ^ 77, i)).collect();
        for (i, logit) in logits.iter_mut().enumerate().skip(1).step_by(5) {
            if seed % 3 == 0 && i % 2 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
        let want = Sampling {
            temperature: 0.1 + 2.0 * noise(seed, 2),
            top_k: [0, 1, 40, 5000][seed as usize % 4],
            top_p: [1.0, 0.9, 0.3, 0.0][seed as usize / 4 % 4],
            min_p: [0.0, 0.05, 1.0][seed as usize % 3],
            seed,
            ..Sampling::greedy()
        };
        let best = best(&logits);
        for position in 0..20 {
            let u = uniform(&want, position);
            assert_eq!(
                draw(&logits, &want, best, u, &mut scratch),
                plain_draw(&logits, &want, best, u),
                "{want:?} at {position}"
            );
        }
    }
}

/// [`draw`] without any memory between its parts, as it is defined.
fn plain_draw(logits: &[f32], want: &Sampling, best: usize, u: f64) -> usize {
    let max = logits[best];
    if max.is_infinite() {
        return best;
    }
    let weight = |i: u32| (f64::from(logits[i as usize] - max) / f64::from(want.temperature)).exp();
    let mut order: Vec<u32> =
        (0..logits.len() as u32).filter(|i| logits[*i as usize] > f32::NEG_INFINITY).collect();
    let top_k = match want.top_k as usize {
        0 => order.len(),
        k => k.min(order.len()),
    };
    if top_k < order.len() {
        first_best(&mut order, top_k, logits);
        order.truncate(top_k);
    }
    if want.top_p < 1.0 {
        let all: f64 = order.iter().map(|i| weight(*i)).sum();
        let goal = f64::from(want.top_p) * all;
        // Most of the mass sits in few tokens: sort a small front first, more only if needed.
        let mut sorted = 64.min(order.len());
        let keep = loop {
            first_best(&mut order, sorted, logits);
            let mut sum = 0.0;
            let enough = order[..sorted].iter().position(|i| {
                sum += weight(*i);
                sum >= goal
            });
            match enough {
                Some(last) => break last + 1,
                None if sorted == order.len() => break sorted,
                None => sorted = (sorted * 8).min(order.len()),
            }
        };
        order.truncate(keep);
    }
    if want.min_p > 0.0 {
        order.retain(|i| weight(*i) >= f64::from(want.min_p) || *i as usize == best);
    }
    // Vocabulary order, so that the draw does not depend on how the filters sorted.
    order.sort_unstable();
    let all: f64 = order.iter().map(|i| weight(*i)).sum();
    let mut left = u * all;
    for i in &order {
        left -= weight(*i);
        if left < 0.0 {
            return *i as usize;
        }
    }
    best
}

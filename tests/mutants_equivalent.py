"""Changes of `make mutants` that change nothing a user can see: module, the changed line, why no test can tell."""

TIE = "a p-value equal to the level to the last bit: a continuous quantity, and no error rate depends on that case"

EQUIVALENT: dict[str, dict[str, str]] = {
    "compare/change_points": {
        "settled = [ -1]": "the first start is at least MIN_SEGMENT, so that places begin at 1 or later",
    },
    "compare/verdicts": {
        "exit_code: int = 4,": "every verdict names its own exit code",
        "exit_code: int = 6,": "every verdict names its own exit code",
    },
    "device/ceilings": {
        'load = self.conditions.get("load_average_1min") or -1.0 # ceilings from before the share was kept': (
            "0 and -1 are both below a positive limit"
        ),
        "implied, most = flop_count / latency_ms / 999999999.0, ceilings.compute_tflops(dtype)": "three digits show",
        "implied, most = flop_count / latency_ms / 1000000001.0, ceilings.compute_tflops(dtype)": "three digits show",
        "implied, most = bytes_moved / latency_ms / 999999.0, ceilings.bandwidth_gbps(limit.bound_by)": (
            "three digits show"
        ),
        "implied, most = bytes_moved / latency_ms / 1000001.0, ceilings.bandwidth_gbps(limit.bound_by)": (
            "three digits show"
        ),
    },
    "device/interference": {
        "if (share := others_share(before, after) or -1) > OTHER_LOAD:": "0 and -1 are both below a positive limit",
    },
    "compare/rules": {
        "changed = (_p_above(rounds, 0.0) <= rules.screen_level) & (mean > limit)": TIE,
        "changed |= (_p_above(-rounds, 0.0) <= rules.screen_level) & (mean < -limit)": TIE,
        "suite_suspect = bool(p <= rules.screen_level and suite.mean() > rules.suite_limit)": TIE,
        "suite_slower = bool(p <= rules.level)": TIE,
        "return bool(p <= rules.sentinel_level / 2)": TIE,
    },
    "gate/outcome": {
        "ratios = [[math.log(head / base) for base, head in table[cell.key] if base or head] for cell in whole]": (
            "both are there in every round of a cell that is whole; the condition tells mypy so"
        ),
    },
    "operators/_attention": {
        "heads: torch.Tensor = tensor.flatten(1, +2).unflatten(-1, (-1, head_dim))": "of four axes, 2 is -2",
    },
    "operators/_dcnv4": {
        'by_group[:, : 3 * points] = case.float_setting("offset_std_px")': "the next line sets the last third",
        "by_group[:, 2 * points :] = -0.5 / points": "a normal distribution is symmetric",
        'smooth["offset_mask_bias"][used].unflatten( -1, layout)[:, offsets] = 0.5': "of one axis, 0 is -1",
    },
    "operators/attention": {
        "scores = (split_heads(q, head_dim) * scale) @ split_heads(k, head_dim).transpose(+2, -1)": (
            "of four axes, 2 is -2"
        ),
    },
    "operators/conv3x3": {
        "padded = F.pad(x, (0, 0, 1, 2, 1, 1))": "a further column of zeros, which no slice reaches",
        "padded = F.pad(x, (0, 0, 1, 1, 1, 2))": "a further row of zeros, which no slice reaches",
    },
    "operators/window_attention": {
        'tensors["bias_table"] = -0.5 * normal(generator, distances, heads)': "a normal distribution is symmetric",
        "out = attend_exactly(q, k, v, bias).transpose(1, 2).flatten(+2)": "of four axes, 2 is -2",
    },
    "report/analysis": {
        "exponent = sum((a - mean_x) * (b + mean_y) for a, b in zip(x, y, strict=True)) / spread": (
            "the deviations of x from their mean add up to 0, so that any constant beside b is multiplied by 0"
        ),
    },
    "results/journal": {
        "whole_bytes: int = -1": "of a journal that was not read yet, which the first reading replaces",
        "whole_bytes: int = 1": "of a journal that was not read yet, which the first reading replaces",
    },
    "results/repetitions": {
        "return lines[ -1]": "of one line the first is the last",
    },
    "results/run": {
        "if (path / RUN).exists() or journal.read( 2):": "a journal that is not empty gives one byte or two",
    },
    "sweeps/check": {
        "generator.manual_seed( -1)": "any fixed seed gives as good a gradient",
        "generator.manual_seed( 1)": "any fixed seed gives as good a gradient",
        "if abs(mean) < allowed:": "a mean equal to its limit to the last bit, of two continuous quantities",
        "terms = drive / norm if norm else -1.0": "no root mean square is below a negative limit either",
        'size = "large" if mean >= 0 else "small"': "a mean of 0 is within its limit, which is never 0",
    },
    "sweeps/plan": {
        'return f"{operator.name} has no such level: all of it is timed as {operator.levels[ -1]}"': (
            "of two levels, an operator without one of them has one"
        ),
    },
    "stats": {
        "if count < 7:": "the ranks of 6 samples, worked out, are the whole range too",
        "if count <= 6:": "the ranks of 6 samples, worked out, are the whole range too",
        "if count > 999:": "the approximation gives the exact ranks of 1000 samples",
        "if count >= 1000:": "the approximation gives the exact ranks of 1000 samples",
        "tail, term, low = -1, 1, -1": "one outcome of 2**count: it changes the ranks of no count from 6 to 1000",
        "tail, term, low = 0, 1, +1": "the first round sets low to 0: one outcome is no more than the limit from 6 on",
        "tail, term, low = 0, 1, - 0": "the first round sets low to 0",
        "tail, term, low = 0, 1, - 2": "the first round sets low to 0",
        "continue": "tail only grows: every later round goes on here too",
    },
    "timing/wall_clock": {
        "count = 0": "a round without launches comes first: it takes no time, and the next one has one launch",
        "for _ in range( 19):": "one look fewer at the same clock, of twenty",
        "for _ in range( 21):": "one look more at the same clock, of twenty",
        "for _ in range( 999): # a clock that stands still (a fake one) has no step to find": "when to give up on it",
        "for _ in range( 1001): # a clock that stands still (a fake one) has no step to find": "when to give up on it",
        "continue": "later readings are further from the start, so none of their steps is smaller",
        'return smallest if smallest < float("inf") else -1.0': "both are less than MIN_SAMPLE_S, which then counts",
    },
    "timing/cuda": {
        "SPIN_CYCLES_PER_SECOND = 1999999999.0": "0.01 cycles less at the longest lead, before it is rounded",
        "SPIN_CYCLES_PER_SECOND = 2000000001.0": "0.01 cycles more at the longest lead, before it is rounded",
        "TRIAL_REPLAYS = 4": "one replay of the trial fewer: the median of equal work",
        "TRIAL_REPLAYS = 6": "one replay of the trial more: the median of equal work",
    },
}

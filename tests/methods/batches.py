"""Small batches of every kind, at random; some rows or tokens have no weight."""

from typing import Any

import numpy as np

ROWS, LENGTH, VOCAB = 4, 6, 13
CHUNK = 2
WINDOW = 4  # of attention, two chunks


def tokens(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Counting from random starts, unevenly masked; two rows to a group."""
    random = np.random.default_rng(seed)
    start = random.integers(0, VOCAB, (rows, 1))
    tokens = ((start + np.arange(LENGTH + 1)) % VOCAB).astype(np.int32)
    mask = np.ones((rows, LENGTH), np.float32)
    mask[-1, 2:] = 0
    mask[0, 3] = 0
    number = np.arange(rows, dtype=np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "mask": mask,
        "segment": number,
        "group": number // 2,
    }


def neighbours(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Two of each chunk, at random; some are absent and one is short."""
    random = np.random.default_rng(seed + 1)
    shape = rows, LENGTH // CHUNK, 2, 2 * CHUNK
    mask = np.ones(shape, np.float32)
    mask[0, 1] = 0
    mask[1, 0, 1] = 0
    mask[2, 1, 0, 3:] = 0
    tokens = random.integers(0, VOCAB, shape).astype(np.int32)
    return {"neighbours": tokens, "neighbour_mask": mask}


def documents(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Counting in rows of four windows, and what helped each chunk of them.

    A chunk may be no candidate of itself, and some have none.
    """
    random = np.random.default_rng(seed + 2)
    length = 4 * WINDOW
    start = random.integers(0, VOCAB, (rows, 1))
    counted = ((start + np.arange(length + 1)) % VOCAB).astype(np.int32)
    mask = np.ones((rows, length), np.float32)
    mask[-1, 10:] = 0
    mask[0, 3] = 0
    number = np.arange(rows, dtype=np.int32)
    count = length // CHUNK
    shape = rows, count, 4
    order = random.permuted(np.tile(np.arange(count), (rows, count, 1)), axis=2)
    back = np.arange(count)[:, None] - order[..., :4]
    return {
        "tokens": counted[:, :-1],
        "targets": counted[:, 1:],
        "mask": mask,
        "segment": number,
        "group": number,
        "step": np.full(rows, 2000, np.int32),
        "candidates": np.maximum(back, 0).astype(np.int32),
        "targets_of_candidates": random.normal(size=shape).astype(np.float32),
    }


def ensembles(seed: int, rows: int) -> dict[str, np.ndarray]:
    """What `tokens` counts to, after documents that count as well; two are absent."""
    counted, k, new = tokens(seed, rows), 3, 3
    random = np.random.default_rng(seed)
    first = random.integers(0, VOCAB, (rows, k, 1))
    documents = ((first + np.arange(2)) % VOCAB).astype(np.int32)
    context = np.repeat(counted["tokens"][:, None], k, axis=1)
    scores = random.normal(size=(rows, k)).astype(np.float32)
    scores[0, 1:] = -np.inf
    return {
        "tokens": np.concatenate([documents, context], axis=-1),
        "targets": counted["targets"][:, -new:],
        "mask": counted["mask"][:, -new:],
        "scores": scores,
    }


def readings(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Random passages of uneven length and an answer that is in one of them.

    One passage is absent, and the last row is padding.
    """
    random = np.random.default_rng(seed)
    passages = random.integers(4, VOCAB, (rows, 3, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < random.integers(3, LENGTH + 1, (rows, 3, 1))
    mask[0, 2] = False
    targets = np.concatenate([passages[:, 1, :3], np.full((rows, 1), 3)], axis=1)
    target_mask = np.ones(targets.shape, np.float32)
    target_mask[1, 2:] = 0
    weight = np.ones(rows, np.float32)
    weight[-1] = 0
    return {
        "passage_ids": passages,
        "passage_mask": mask.astype(np.int32),
        "targets": targets.astype(np.int32),
        "target_mask": target_mask,
        "weight": weight,
    }


def joint(entry: str, seed: int, rows: int) -> dict[str, Any]:
    """A reader's batch, and its passages as the retriever reads them.

    REALM's sentence stands before each of its candidates, and the null one is empty.
    """
    batch, found = readings(seed, rows), candidates(seed, rows)
    alone = {f"query_{x}": found[f"query_{x}"] for x in ("ids", "mask")}
    alone |= {f"candidate_{x}": found[f"passage_{x}"] for x in ("ids", "mask")}
    if entry == "atlas":
        return batch | alone | {"present": batch["passage_mask"].any(-1)}
    sentence = np.repeat(alone["query_ids"][:, None], 3, axis=1)
    mask = alone["candidate_mask"].copy()
    mask[:, 0, 1:] = 0
    alone["candidate_mask"] = mask
    parts = {"ids": alone["candidate_ids"], "mask": mask, "types": np.ones_like(mask)}
    before = {"ids": sentence, "mask": np.ones_like(sentence)}
    before["types"] = np.zeros_like(sentence)
    together = {
        f"passage_{name}": np.concatenate([before[name], parts[name]], axis=-1)
        for name in parts
    }
    random = np.random.default_rng(seed)
    positions = np.stack([random.permutation(4)[:2] for _ in range(rows)])
    target_mask = np.ones((rows, 2), np.float32)
    target_mask[1, 1] = 0
    present = found["present"].copy()
    present[:, 0] = True
    present[0, 2] = False
    return {
        **alone,
        **together,
        "positions": positions.astype(np.int32),
        "targets": batch["targets"][:, :2],
        "target_mask": target_mask,
        "present": present,
        "weight": batch["weight"],
    }


def candidates(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Random texts and what a language model says of them; the last row is padding."""
    random = np.random.default_rng(seed)
    shape = rows, 3, LENGTH
    passages = random.integers(1, VOCAB, shape).astype(np.int32)
    mask = (np.arange(LENGTH) < random.integers(2, LENGTH + 1, (rows, 3, 1))).astype(
        np.int32
    )
    present = np.ones(shape[:2], bool)
    present[0, 1] = False
    weight = np.ones(rows, np.float32)
    weight[-1] = 0
    queries = random.integers(1, VOCAB, (rows, 4)).astype(np.int32)
    scores = random.normal(size=shape[:2]).astype(np.float32)
    return {
        "query_ids": queries,
        "query_mask": np.ones((rows, 4), np.int32),
        "passage_ids": passages,
        "passage_mask": mask,
        "ids": passages,
        "mask": mask,
        "lm_scores": scores,
        "teacher_scores": scores,
        "present": present,
        "weight": weight,
    }


def texts(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Random texts, and beginnings of them as questions; the last row is padding.

    Two questions have one passage, and a third's negative answers the first as well.
    """
    random = np.random.default_rng(seed)
    passages = random.integers(1, VOCAB, (rows, 2, LENGTH)).astype(np.int32)
    # Crops are told apart by their texts alone; of equal ones rounding would decide.
    crops = passages[:, 0].copy()
    passages[2, 0] = passages[1, 0]
    passage_mask = np.ones_like(passages)
    passage_mask[0, :, 4:] = 0
    number = 2 * np.arange(rows, dtype=np.int32)[:, None] + np.arange(2, dtype=np.int32)
    number[2, 0] = number[1, 0]
    known = np.full((rows, 3), -1, np.int32)
    known[0, 1] = number[2, 1]
    number[1, 1] = -1
    weight = np.ones(rows, np.float32)
    weight[-1] = 0
    ones = np.ones((rows, 4), np.int32)
    return {
        **{"question_ids": passages[:, 0, :4], "question_mask": ones},
        **{"query_ids": crops[:, :4], "query_mask": ones},
        **{"key_ids": crops, "key_mask": passage_mask[:, 0]},
        "passage_ids": passages,
        "passage_mask": passage_mask,
        "passage": number,
        "known": known,
        "weight": weight,
    }


def masked(entry: str, seed: int, rows: int) -> dict[str, np.ndarray]:
    """Sequences that count, two words of each masked; the last row is padding.

    Every row has the words 5, 6 and 7 one after another somewhere, which are masked in
    every row: whatever rows are left out, some other row has them.
    """
    random = np.random.default_rng(seed)
    ids = random.integers(8, VOCAB, (rows, LENGTH)).astype(np.int32)
    at = random.integers(0, LENGTH - 2, rows)
    ids[np.arange(rows)[:, None], at[:, None] + np.arange(3)] = 5, 6, 7
    mask = np.ones((rows, LENGTH), np.int32)
    weight = np.ones(rows, np.float32)
    weight[-1] = 0
    masked, mask_id = ids.copy(), 4
    if entry == "npm":  # 5, 6, 7 gives way to two masks, and the last place is free
        masked = np.stack([np.r_[r[:a], [mask_id] * 2, r[a + 3 :], 0] for r, a in
                           zip(ids, at, strict=True)]).astype(np.int32)  # fmt: skip
        spans = np.tile(np.array([5, 6, 7, -1], np.int32), (rows, 2, 1))
        places = np.stack([at, np.zeros(rows, np.int64)], 1)
        span_mask = np.tile(np.array([1, 0], np.float32), (rows, 1))
    else:
        places = np.stack([at, at + 2], 1)
        masked[np.arange(rows)[:, None], places] = mask_id
        spans = np.tile(np.array([[5], [7]], np.int32), (rows, 1, 1))
        span_mask = np.ones((rows, 2), np.float32)
    masked_mask = (masked > 0).astype(np.int32)
    places = places.astype(np.int32)
    if entry == "masked_lm":
        return {
            **{"ids": masked, "mask": masked_mask, "at": places, "weight": weight},
            **{"targets": spans[..., 0], "target_mask": span_mask},
        }
    return {
        **{"ids": ids, "mask": mask, "masked_ids": masked, "masked_mask": masked_mask},
        **{"at": places, "spans": spans, "span_mask": span_mask, "weight": weight},
    }

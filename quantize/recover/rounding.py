"""Adaptive rounding: every weight goes up or down, so that the layer's output errs least.

Rounding to nearest minimizes the error of each weight, not that of their sum over a patch. With the
second moments H of the patches, the error power of one output channel is ``(q - w)' H (q - w)``:
the quadratic unconstrained binary problem of Nagel et al., "Up or Down? Adaptive Rounding for
Post-Training Quantization", ICML 2020 (equations 11 to 13). It is solved here by rounding with
error feedback (Frantar et al., "GPTQ", ICLR 2023; in the form of Babai's nearest plane, which needs
one Cholesky factor and no inverse) and then by coordinate descent, until no single weight can be
moved for the better.
"""

import numpy as np

_BLOCK = 128
_SWEEPS = 8
_SETTLED = 1 / 2000
_FEW_TAPS = 64
_SHUFFLES = 15


def round_adaptively(
    target: np.ndarray, moments: np.ndarray, levels: int, *, reach: int = 0
) -> np.ndarray:
    """The integer weights of the least output error that were found; never worse than nearest.

    Args:
        target: weights in units of their scales, [groups, rows, taps].
        moments: second moments of the quantized patches, [groups, taps, taps], positive definite.
        levels: codes run from ``-levels`` to ``levels``; 127 for 8 bits, 7 for 4.
        reach: how far a code may lie beyond the two integers around its target.

    Returns:
        Codes as float32, [groups, rows, taps]. The same input gives the same codes.
    """
    target = target.astype(np.float32)
    low = np.clip(np.floor(target) - reach, -levels, levels)
    high = np.clip(np.ceil(target) + reach, -levels, levels)
    nearest: np.ndarray = np.clip(np.rint(target), -levels, levels)
    codes, error = nearest.copy(), output_error(nearest - target, moments)
    for order in _orders(target.shape[2]):
        _take_better(codes, error, _solve(target, moments, low, high, order), target, moments)
    stayed = (codes == nearest).all(axis=2).any(axis=1)  # groups in which no order beat nearest
    if stayed.any():
        found = codes.copy()
        part = found[stayed]
        _descend(part, target[stayed], moments[stayed], low[stayed], high[stayed])
        found[stayed] = part
        _take_better(codes, error, found, target, moments)
    return codes


def _take_better(
    codes: np.ndarray, error: np.ndarray, found: np.ndarray, target: np.ndarray, moments: np.ndarray
) -> None:
    """Put the rows of `found` that err less in the place of those of `codes`, and of `error`."""
    reached = output_error(found - target, moments)
    np.copyto(codes, found, where=(reached < error)[..., None])
    np.minimum(error, reached, out=error)


def output_error(errors: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Error power of every row, [groups, rows], of weight errors [groups, rows, taps]."""
    result: np.ndarray = np.einsum("grk,grk->gr", errors @ moments, errors, dtype=np.float64)
    return result


def _orders(taps: int) -> list[np.ndarray | None]:
    """Orders of the taps to solve in; which one is best is not known, and few taps are cheap."""
    random = np.random.default_rng(taps)
    shuffles = _SHUFFLES if taps <= _FEW_TAPS else 0
    return [None, *(random.permutation(taps) for _ in range(shuffles))]


def _solve(
    target: np.ndarray,
    moments: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    order: np.ndarray | None,
) -> np.ndarray:
    """Codes by error feedback in that order of taps, and by descent from there."""
    if order is not None:
        target, low, high = target[..., order], low[..., order], high[..., order]
        moments = moments[:, order][..., order]
    codes = _round_with_feedback(target, moments, low, high)
    _descend(codes, target, moments, low, high)
    return codes if order is None else codes[..., np.argsort(order)]


def _round_with_feedback(
    target: np.ndarray, moments: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Tap by tap from the last; each takes up the errors made so far as well as it can.

    With ``H = U'U`` the error power is ``sum_i (U_ii e_i + sum_(j>i) U_ij e_j)**2``, so the best
    ``e_i`` for given later ones is ``-sum_(j>i) U_ij e_j / U_ii``.
    """
    factor = np.linalg.cholesky(moments.astype(np.float64)).transpose(0, 2, 1)
    factor = (factor / np.einsum("gkk->gk", factor)[:, :, None]).astype(np.float32)
    codes = np.empty_like(target)
    errors = np.zeros_like(target)
    taps = target.shape[2]
    for stop in range(taps, 0, -_BLOCK):
        start = max(stop - _BLOCK, 0)
        carried = errors[..., stop:] @ factor[:, start:stop, stop:].transpose(0, 2, 1)
        carried = np.ascontiguousarray(np.moveaxis(carried, 2, 0))  # [block, groups, rows]
        inside = np.ascontiguousarray(factor[:, start:stop, start:stop].transpose(2, 1, 0))
        for tap in range(stop - 1, start - 1, -1):
            place = tap - start
            wanted = target[..., tap] - carried[place]
            code = np.clip(np.rint(wanted), low[..., tap], high[..., tap])
            codes[..., tap] = code
            error = code - target[..., tap]
            errors[..., tap] = error
            carried[:place] += inside[place, :place, :, None] * error
    return codes


def _descend(
    codes: np.ndarray, target: np.ndarray, moments: np.ndarray, low: np.ndarray, high: np.ndarray
) -> None:
    """Move single codes to where the error is least, tap by tap for all rows; changes `codes`."""
    gradient = (codes - target) @ moments
    taps = target.shape[2]
    diagonal = np.einsum("gkk->gk", moments)
    for _ in range(_SWEEPS):
        moved = 0
        for start in range(0, taps, _BLOCK):
            block = slice(start, min(start + _BLOCK, taps))
            steps = _descend_block(
                codes[..., block],
                gradient[..., block],
                (moments[:, block, block], diagonal[:, block]),
                (low[..., block], high[..., block]),
            )
            if steps.any():
                moved += int(np.count_nonzero(steps))
                codes[..., block] += steps
                gradient += steps @ moments[:, block, :]
        if moved <= codes.size * _SETTLED:
            return


def _descend_block(
    codes: np.ndarray,
    gradient: np.ndarray,
    moments: tuple[np.ndarray, np.ndarray],
    bounds: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """What one sweep over a block of taps changes, in the shape of `codes`."""
    slopes = np.moveaxis(gradient, 2, 0).copy()  # [block, groups, rows]
    before = np.moveaxis(codes, 2, 0).copy()
    low, high = (np.moveaxis(bound, 2, 0) for bound in bounds)
    inside = np.ascontiguousarray(moments[0].transpose(1, 2, 0))  # [tap, block, groups]
    curvature = np.ascontiguousarray(moments[1].T)[..., None]
    steps = np.zeros_like(before)
    for tap in range(before.shape[0]):
        best = np.rint(before[tap] - slopes[tap] / curvature[tap])
        step = np.clip(best, low[tap], high[tap]) - before[tap]
        if step.any():
            steps[tap] = step
            slopes += inside[tap][..., None] * step
    return np.moveaxis(steps, 0, 2)

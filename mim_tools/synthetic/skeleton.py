"""Bones: spine, ribs, sternum, shoulder girdle, pelvis and femurs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.grid import stream
from mim_tools.synthetic.painter import Part
from mim_tools.synthetic.shapes import (
    FAR,
    Array,
    Piece,
    Points,
    capsule,
    ellipsoid,
    mirrored,
    moved,
    smooth_max,
    tube,
    union_distance,
)
from mim_tools.synthetic.trunk import Trunk

BONE = ((0.0, "cortical_bone"), (2.0, "trabecular_bone"))
# height z, half width, half depth and height of the vertebral bodies in mm, from C4 down to L5
_VERTEBRAE = [
    (373, 12, 8, 12.5), (356, 12.5, 8.5, 12.5), (339, 13, 8.5, 12.5), (322, 14, 9, 14),
    (303, 15, 10, 15), (282, 14.5, 11, 16.5), (261, 14, 12, 17.5), (239, 14, 12.5, 18), (216, 14.5, 13, 18.5),
    (192, 15, 13.5, 19), (168, 15.5, 14, 19.5), (143, 16.5, 14.5, 20), (118, 17.5, 15, 21), (91, 18.5, 15.5, 22),
    (63, 19.5, 15.5, 24), (33, 21, 16, 24.5),
    (0, 22, 16.5, 26), (-37, 23, 17, 27), (-74, 24, 17.5, 27.5), (-111, 24.5, 17.5, 27.5), (-148, 25, 17, 27),
]  # fmt: skip
_FIRST_THORACIC, _FIRST_LUMBAR = 4, 16
RIB_HEIGHTS = np.array([row[0] for row in _VERTEBRAE[_FIRST_THORACIC:_FIRST_LUMBAR]], dtype=np.float32) + 6
_BONE_END = np.radians([110, 122, 128, 130, 130, 128, 126, 122, 118, 112, 88, 62]).astype(np.float32)
_CARTILAGE_END = np.radians([172, 172, 172, 172, 172, 172, 170, 156, 146, 134, 91, 64]).astype(np.float32)


def spine(trunk: Trunk) -> list[Part]:
    """Discs, vertebrae with arch and processes, sacrum and the canal that runs through them."""
    discs = tuple(_disc(low, high) for high, low in zip(_VERTEBRAE, _VERTEBRAE[1:], strict=False))
    sacrum = Piece(np.array([[-56.0, -100, -282], [56, 0, -158]]), _sacrum)
    bones = [Part("vertebrae", (_body(*row), *_arch(trunk, index)), BONE) for index, row in enumerate(_VERTEBRAE)]
    canal = Piece(np.array([[-12.0, -110, -225], [12, 20, 385]]), _canal)
    return [
        Part("intervertebral_discs", discs, ((0.0, "disc"),)),
        *bones,
        Part("vertebrae", (sacrum,), BONE, roughness=1.5),
        Part("spinal_canal", (canal,), ((0.0, "canal_fat"), (2.0, "spinal_cord"))),
    ]


def _column(points: Points, width: float, depth: float) -> Array:
    u, v = points.x * (1 / width), points.field("spine") * (1 / depth)
    # a vertebral body is flat towards the canal
    v = np.where(v < 0, v * 1.12, v)
    return (np.sqrt(u * u + v * v) - 1) * min(width, depth)


def _disc(low: tuple[float, ...], high: tuple[float, ...]) -> Piece:
    middle, half = (low[0] + high[0]) / 2, (high[0] - low[0]) / 2
    width, depth = (low[1] + high[1]) / 2, (low[2] + high[2]) / 2

    def distance(points: Points) -> Array:
        return np.maximum(_column(points, width, depth), np.abs(points.z - middle) - half)

    return Piece(np.array([[-30.0, -110, middle - half], [30, 20, middle + half]]), distance)


def _body(z: float, width: float, depth: float, height: float) -> Piece:
    def distance(points: Points) -> Array:
        level = (points.z - z) * (2 / height)
        waist = (1 - np.minimum(level * level, 1)) * 1.8
        return smooth_max(_column(points, width, depth) + waist, np.abs(points.z - z) - height / 2, 4.0)

    return Piece(np.array([[-width - 4, -110, z - height / 2 - 3], [width + 4, 20, z + height / 2 + 3]]), distance)


def _arch(trunk: Trunk, index: int) -> list[Piece]:
    """Pedicles and lamina as a ring around the canal, spinous and transverse processes, joints."""
    z, width, depth, height = _VERTEBRAE[index]
    lumbar, thoracic = index >= _FIRST_LUMBAR, _FIRST_THORACIC <= index < _FIRST_LUMBAR
    center = float(np.interp(z, np.arange(-700, 700.5, 0.5), trunk.spine_y))
    canal = center - depth - 8

    def ring(points: Points) -> Array:
        y = points.field("spine") + (depth + 8)
        radius = np.sqrt(points.x * points.x + y * y)
        return np.maximum(np.abs(radius - 12) - 3.2, np.abs(points.z - z + 3) - 0.36 * height)

    pieces = [Piece(np.array([[-16.0, canal - 20, z - height], [16, canal + 20, z + height]]), ring)]
    drop = 5 if lumbar else (15 if thoracic else 4)
    tip = (26 if lumbar else 22) if index > 2 else 14
    pieces.append(ellipsoid((0, canal - 12 - tip / 2, z - 3 - drop), (3.6, tip / 2 + 4, 9), (drop * 1.5, 0, 0)))
    reach, back = (width + 16, 5) if lumbar else (width + 14 if thoracic else width + 8, 16 if thoracic else 2)
    for side in (-1, 1):
        pieces.append(capsule((side * 11, canal - 1, z), (side * reach, canal - back, z + 3), 5.0, 3.6))
        pieces.append(capsule((side * 14, canal - 8, z - height * 0.6), (side * 14, canal - 7, z + height * 0.6), 5, 5))
    return pieces


def _sacrum(points: Points) -> Array:
    fall = np.clip((-165 - points.z) * (1 / 110), 0, 1)  # 0 at the promontory, 1 at the coccyx
    width, depth = 58 - 48 * fall, 18 - 11 * fall
    u, v = points.x / width, points.field("spine") / depth
    slab = (np.sqrt(u * u + v * v) - 1) * depth
    phase = np.abs((points.z + 165) * (1 / 24) - np.round((points.z + 165) * (1 / 24))) * 24
    x = np.abs(points.x) - (22 - 10 * fall)
    holes = 4.5 - np.sqrt(x * x + phase * phase)
    return np.maximum(smooth_max(slab, np.abs(points.z + 220) - 56, 8.0), holes)


def _canal(points: Points) -> Array:
    row = np.interp(points.z, [z for z, *_ in _VERTEBRAE[::-1]], [row[2] for row in _VERTEBRAE[::-1]])
    y = points.field("spine") + row.astype(np.float32) + 8
    radius = np.sqrt(points.x * points.x * 0.75 + y * y)
    return np.maximum(radius - 8, np.maximum(-225 - points.z, points.z - 385))


def _rib_field(points: Points, trunk: Trunk, cartilage: bool) -> Array:
    """Distance to all ribs at once: on the surface of the cage, a rib is a band that falls from back to front."""
    shell = points.field("cage")
    out = np.full_like(shell, FAR)
    near = np.nonzero((np.abs(shell) < 10) & (points.z < 318) & (points.z > -60))
    if not near[0].size:
        return out
    x, y, z, off = points.x[near], points.y[near], points.z[near], shell[near]
    width, front, back, _ = trunk.cage_table[:, points.field("row")[near]]
    angle = np.arctan2(np.abs(x) / width, -(2 * y - front - back) / (front - back))
    fall = _rib_fall(angle, z)
    level = np.interp(z + fall, RIB_HEIGHTS[::-1], np.arange(11, -1, -1))
    number = np.clip(np.round(level), 0, 11).astype(np.int32)
    along = (z + fall - RIB_HEIGHTS[number]) * 0.88
    ends = (_CARTILAGE_END if cartilage else _BONE_END)[number]
    starts = _BONE_END[number] - 0.02 if cartilage else np.float32(0.2)
    thick, high = (3.4, 5.6) if cartilage else (3.8, 6.6)
    band = (np.sqrt((along / high) ** 2 + (off / thick) ** 2) - 1) * thick
    out[near] = np.maximum(band, np.maximum(angle - ends, starts - angle) * 90)
    return out


def _rib_fall(angle: Array, z: Array) -> Array:
    """Descent of a rib in mm at an angle from the back; the lower ribs descend more and rise at the front."""
    shape = np.interp(angle, np.radians([0, 10, 40, 80, 120, 145, 180]), [0, 0, 0.22, 0.7, 1.0, 0.95, 0.78])
    size = np.interp(z + 60 * shape, [0, 60, 130, 200, 260, 310], [70, 84, 92, 82, 62, 42])
    return (shape * size).astype(np.float32)


def ribs(trunk: Trunk) -> list[Part]:
    """Twelve pairs of ribs, their cartilages and the sternum."""
    bounds = np.array([[-155.0, -105, -60], [155, 110, 320]])
    bone = Piece(bounds, lambda points: _rib_field(points, trunk, cartilage=False))
    cartilage = Piece(bounds, lambda points: _rib_field(points, trunk, cartilage=True))

    def sternum(points: Points) -> Array:
        width = np.interp(points.z, [92, 108, 125, 215, 228, 268], [3, 7, 17, 13, 19, 29]).astype(np.float32)
        flat = np.maximum(np.abs(points.field("cage")) - 5.5, np.abs(points.x) - width)
        return np.maximum(flat, np.maximum(np.abs(points.z - 180) - 88, 20 - points.y))

    plate = Piece(np.array([[-36.0, 20, 85], [36, 115, 275]]), sternum)
    return [
        Part("costal_cartilages", (cartilage,), ((0.0, "cartilage"),)),
        Part("ribs", (bone,), ((0.0, "cortical_bone"), (1.5, "trabecular_bone"))),
        Part("sternum", (plate,), ((0.0, "cortical_bone"), (1.5, "trabecular_bone")), roughness=1.5),
    ]


def _within_wall(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Keep bones of the shoulder and hip under the muscle that covers them."""

    def distance(points: Points) -> Array:
        return np.maximum(union_distance(pieces, points), points.field("wall") + 5)

    lower = np.min([piece.bounds[0] for piece in pieces], axis=0)
    upper = np.max([piece.bounds[1] for piece in pieces], axis=0)
    return (Piece(np.stack([lower, upper]), distance),)


def shoulders(seed: int) -> list[Part]:
    """Clavicles, scapulae and the heads of the humeri."""
    parts = []
    for side in (-1, 1):
        shift = moved(stream(seed, "shoulders"), (0, 0, 0), 3.0)
        clavicle = [(20, 38, 268, 7), (60, 36, 284, 6), (105, 4, 296, 6), (142, -16, 298, 6)]
        blade = ellipsoid(mirrored(np.array([98.0, -70, 222]) + shift, side), (44, 5, 62), (4, 0, side * 24))
        ridge = capsule(mirrored(np.array([70.0, -80, 262]), side), mirrored(np.array([138.0, -42, 290]), side), 5, 7)
        head = ellipsoid(mirrored(np.array([150.0, -22, 276]) + shift, side), (23, 24, 24))
        bones = (*tube(mirrored(np.array(clavicle, dtype=float), side)), blade, ridge, head)
        parts += [Part("shoulder_girdle", _within_wall((bone,)), BONE) for bone in bones]
    return parts


def _hip(side: int) -> tuple[Piece, ...]:
    def at(x: float, y: float, z: float) -> NDArray[np.float64]:
        return mirrored(np.array([x, y, z], dtype=float), side)

    return (
        ellipsoid(at(92, -14, -170), (66, 7.5, 54), (14, -side * 12, side * 52)),
        ellipsoid(at(82, -4, -240), (30, 33, 34)),
        capsule(at(60, -58, -190), at(72, -30, -225), 14, 16),
        capsule(at(74, -28, -262), at(56, -36, -308), 16, 13),
        capsule(at(80, 30, -248), at(12, 56, -268), 11, 8.5),
        capsule(at(13, 54, -272), at(52, -20, -310), 8, 9),
    )


def pelvis(seed: int) -> list[Part]:
    """Hip bones, then the femurs in their sockets with a joint space between."""
    parts = []
    for side in (-1, 1):
        head = moved(stream(seed, "hips"), (90, 0, -250), 1.5)
        head[0] *= side
        trochanter = (side * 130, -12, -278)
        parts += [Part("pelvis", _within_wall((bone,)), BONE) for bone in _hip(side)]
        parts.append(Part("body", (ellipsoid(head, (27.5, 27.5, 27.5)),), ((0.0, "cartilage"),)))
        for bone in (
            ellipsoid(head, (24, 24, 24)),
            capsule(head, trochanter, 16, 17),
            ellipsoid(trochanter, (17, 20, 26)),
            capsule(trochanter, (side * 105, 2, -700), 17, 14),
        ):
            parts.append(Part("femurs", _within_wall((bone,)), BONE))
    return parts

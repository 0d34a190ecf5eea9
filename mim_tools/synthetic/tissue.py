"""Tissue of the synthetic anatomy: labels, coarse and fine; HU per contrast phase, texture, and their random spread."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mim_tools.synthetic.grid import stream

_NAMES = (
    "background",
    "body",
    "subcutaneous_fat",
    "muscle",
    "vertebrae",
    "intervertebral_discs",
    "spinal_canal",
    "ribs",
    "costal_cartilages",
    "sternum",
    "shoulder_girdle",
    "pelvis",
    "femurs",
    "right_lung",
    "left_lung",
    "lung_vessels",
    "airways",
    "heart",
    "aorta",
    "pulmonary_artery",
    "superior_vena_cava",
    "inferior_vena_cava",
    "portal_vein",
    "oesophagus",
    "stomach",
    "bowel",
    "liver",
    "gallbladder",
    "pancreas",
    "spleen",
    "right_kidney",
    "left_kidney",
    "right_adrenal",
    "left_adrenal",
    "bladder",
    "lung_lesion",
    "liver_lesion",
    "kidney_lesion",
)

# "body" is everything inside the muscle wall that is not a named organ: fat, small vessels, soft tissue.
SYNTHETIC_LABELS: dict[int, str] = dict(enumerate(_NAMES))

# Parts of the labels above that some segmentations distinguish: finer label -> the label it belongs to.
PARENTS: dict[str, str] = {
    "prostate": "body",
    "left_ventricle": "heart",
    "left_myocardium": "heart",
    "right_ventricle": "heart",
    "left_atrium": "heart",
    "right_atrium": "heart",
    "ascending_aorta": "aorta",
    "duodenum": "bowel",
    "liver_vessel": "liver",
    "right_kidney_lesion": "kidney_lesion",
    "left_kidney_lesion": "kidney_lesion",
    "lung_tumour": "lung_lesion",
    "covid_lesion": "lung_lesion",
    "pneumonia": "lung_lesion",
    "liver_tumour": "liver_lesion",
    "pancreas_tumour": "pancreas",
    "colon_tumour": "bowel",
}
FINE_LABELS: dict[int, str] = dict(enumerate((*_NAMES, *PARENTS)))
LABEL_NUMBERS: dict[str, int] = {name: number for number, name in FINE_LABELS.items()}

# by number of `FINE_LABELS`: the number of `SYNTHETIC_LABELS` that it belongs to
TO_COARSE = np.array([LABEL_NUMBERS[PARENTS.get(name, name)] for name in FINE_LABELS.values()], dtype=np.uint8)

PHASES = ("none", "arterial", "portal", "delayed")

# mean in HU without contrast agent and in the arterial, portal and delayed phase
_MEANS: dict[str, tuple[float, float, float, float]] = {
    "air": (-990, -990, -990, -990),
    "lung": (-855, -852, -850, -852),
    "fat": (-102, -102, -100, -101),
    "prostate": (38, 55, 72, 70),
    "marbling": (-35, -33, -30, -31),
    "skin": (15, 20, 25, 22),
    "muscle": (52, 56, 62, 60),
    "cortical_bone": (720, 720, 720, 720),
    "trabecular_bone": (190, 195, 200, 198),
    "cartilage": (95, 96, 98, 98),
    "disc": (82, 84, 86, 86),
    "canal_fat": (-20, -15, -10, -12),
    "spinal_cord": (28, 30, 33, 32),
    "airway_wall": (10, 20, 25, 20),
    "lung_vessel": (42, 190, 120, 80),
    "heart_muscle": (44, 95, 108, 90),
    "left_blood": (40, 300, 155, 112),
    "right_blood": (40, 240, 152, 112),
    "aorta": (41, 315, 158, 112),
    "vena_cava": (40, 75, 140, 110),
    "portal_vein": (41, 95, 168, 115),
    "hepatic_vein": (41, 62, 158, 112),
    "gut_wall": (38, 70, 88, 76),
    "stomach_content": (14, 14, 14, 14),
    "bowel_content": (26, 28, 30, 30),
    "stool": (20, 20, 20, 20),
    "liver": (57, 66, 108, 92),
    "bile": (8, 8, 8, 8),
    "pancreas": (42, 98, 96, 76),
    "spleen": (49, 112, 116, 94),
    "kidney_cortex": (33, 150, 178, 150),
    "kidney_medulla": (31, 72, 150, 152),
    "adrenal": (24, 62, 74, 56),
    "urine": (4, 5, 12, 160),
    "bladder_urine": (4, 4, 5, 60),
    "lung_lesion": (35, 48, 58, 55),
    "liver_lesion": (36, 44, 52, 62),
    "kidney_lesion": (10, 14, 16, 16),
}

# tissues of findings: reference tissue, and difference from it in HU
_RELATIVE: dict[str, tuple[str, float]] = {
    "liver_tumour": ("liver", -48),
    "pancreas_tumour": ("pancreas", -45),
    "colon_tumour": ("gut_wall", 4),
    "ground_glass": ("lung", 360),
    "consolidation": ("muscle", -25),
}

# standard deviation in HU of the slowly varying texture inside a label
_TEXTURE: dict[str, float] = {
    "body": 9, "subcutaneous_fat": 7, "muscle": 8, "vertebrae": 38, "ribs": 45, "sternum": 45, "shoulder_girdle": 42,
    "pelvis": 45, "femurs": 40, "costal_cartilages": 25, "right_lung": 16, "left_lung": 16, "bowel": 14, "stomach": 8,
    "heart": 5, "pancreas": 9, "liver": 4, "spleen": 4, "right_kidney": 6, "left_kidney": 6, "lung_lesion": 14,
    "liver_lesion": 9, "kidney_lesion": 3, "covid_lesion": 70, "pneumonia": 45, "pancreas_tumour": 6, "colon_tumour": 8,
}  # fmt: skip


def tissue_values(seed: int, phase: str) -> dict[str, float]:
    """Mean HU of every tissue for one person.

    Enhancement over the unenhanced value is scaled by one factor (dose and timing), every tissue has a small spread of
    its own, and the liver may be fatty. Paired organs share one tissue, so that intensity does not tell left from
    right.

    Args:
        seed: the person.
        phase: one of `PHASES`.

    Returns:
        HU by tissue.
    """
    rng = stream(seed, "intensity")
    column = PHASES.index(phase)
    strength = rng.uniform(0.8, 1.2)
    spread = {name: float(np.clip(rng.standard_normal(), -2, 2)) for name in sorted(_MEANS)}
    fatty = rng.uniform(15, 45) if rng.random() < 0.15 else 0.0
    bone = rng.uniform(0.7, 1.2)
    values = {}
    for name, means in _MEANS.items():
        value = means[0] + strength * (means[column] - means[0])
        if name.endswith("_bone"):
            value *= bone
        else:
            value += spread[name] * (3.0 + 0.03 * abs(means[column] - means[0]))
        values[name] = value
    values["liver"] -= fatty
    values["liver_lesion"] += rng.choice([0.0, 0.0, 25.0])
    values["air"] = _MEANS["air"][0]
    values["bladder_urine"] += rng.uniform(0, 250) if phase == "delayed" else 0.0
    rng = stream(seed, "intensity of findings")
    for name, (reference, step) in _RELATIVE.items():
        values[name] = values[reference] + step * rng.uniform(0.85, 1.15)
    return values


def texture_table(seed: int) -> NDArray[np.float32]:
    """Standard deviation in HU of the texture, by number of `FINE_LABELS`."""
    strength = stream(seed, "texture").uniform(0.7, 1.3)
    own = [_TEXTURE.get(name, _TEXTURE.get(PARENTS.get(name, ""), 4.0)) for name in FINE_LABELS.values()]
    own[LABEL_NUMBERS["background"]] = 0.0
    return np.array([strength * sigma for sigma in own], dtype=np.float32)


def gravity_table(seed: int) -> NDArray[np.float32]:
    """Change in HU per mm towards the front, by number of `FINE_LABELS`: lungs are denser behind."""
    slope = np.zeros(len(FINE_LABELS), dtype=np.float32)
    for name in ("right_lung", "left_lung"):
        slope[LABEL_NUMBERS[name]] = -stream(seed, "gravity").uniform(0.2, 0.6)
    return slope

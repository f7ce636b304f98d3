"""MedDet: adaptive alignment, learnable fusion, a guard against collapse and an adversarial auxiliary teacher."""

"""Polynomials of the inlined functions: minimax fits by Remez exchange, lowest power first.

Each is fitted for the last bit of its dtype; the leading terms (1, x, 2s) stand outside the
polynomial and are exact, so exp(0) is exactly 1 and rescaling by it never drifts. A test holds
every function to its stated error.
"""

from __future__ import annotations

# fmt: off
# 2^f = 1 + f·q(f) for |f| <= 1/2. Relative error 1.0e-7 (float), 4e-18 (double).
EXP2 = {
    "float": (0.6931470078031161, 0.24022261105435766, 0.05550713826425262, 0.009670633593250929,
              0.00132670730025267),
    "double": (0.6931471805599453, 0.24022650695910117, 0.055504108664820424, 0.009618129107598891,
               0.001333355814672982, 0.00015403530451835708, 1.5252733516296647e-05, 1.3215437643964285e-06,
               1.0178195215923506e-07, 7.073412977609012e-09, 4.4348808881251493e-10),
}
# log2(e) = HIGH + LOW
LOG2E = {"float": (1.4426950216293335, 1.925963033500011e-08), "double": (1.4426950408889634, 2.0355273740931033e-17)}

# log(1+f) = 2s + s·z·Q(z), s = f/(2+f), z = s², for 1+f in [√½, √2]. Error below 1e-9 and 2e-18.
LOG = {
    "float": (0.6666674446043577, 0.3998071784867794, 0.2979880312116128),
    "double": (0.6666666666666681, 0.3999999999973787, 0.2857142867576578, 0.22222204975540286,
               0.1818325024239148, 0.15321683142653184, 0.1472304802454834),
}
# ln 2 = HIGH + LOW; HIGH ends in zeros, so that its product with an exponent is exact.
LN2 = {"float": (0.69140625, 0.0017409306019544601), "double": (0.6931471805592082, 7.371002565167799e-13)}

# sin(x) = x + x·z·S(z), cos(x) = 1 - z/2 + z²·C(z), z = x², for |x| <= π/4.
SIN = {
    "float": (-0.16666657699273232, 0.008332307609116405, -0.00019531353834938527),
    "double": (-0.16666666666666655, 0.008333333333327224, -0.00019841269833113686, 2.7557314703682164e-06,
               -2.505090049814729e-08, 1.5904315408749542e-10),
}
COS = {
    "float": (0.04166666080178294, -0.0013887971581760577, 2.4500772027580342e-05),
    "double": (0.041666666666666664, -0.0013888888888885682, 2.4801587296804672e-05, -2.755731646073362e-07,
               2.087600619897075e-09, -1.1374031435709803e-11),
}
# π/2 in three doubles, and the argument up to which reducing by them is exact enough.
HALF_PI = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33)
TWO_OVER_PI = 0.6366197723675814
REDUCIBLE = {"float": 2.0**40, "double": 2.0**25}
# fmt: on

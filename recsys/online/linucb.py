"""LinUCB: a linear model of the reward with a bonus for what is not known (Li, Chu, Langford and Schapire, WWW 2010).

The paper adds a row at a time; here a batch of rows adds to the sums, and the systems are solved afresh, by Cholesky:
the same numbers. Shapes: S visits, C candidates, K positions, U users, I items, D user features, E item features,
Z = D * E of what is shared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recsys.online.policies import rows_of
from recsys.online.slates import Policy, Rows, Slates, Visits, padded
from recsys.schema import ITEM_ID, LABEL, USER_ID

_NUMBERS = 1 << 24  # float64 held at a time


class LinUCB:
    """Shows the items of highest x'theta_a + alpha * s_a; each a ridge regression of the label on user features x.

    disjoint (algorithm 1): A_a = ridge I + sum x x', b_a = sum label * x over the rows of item a, theta_a = A_a^-1 b_a,
        s_a^2 = x'A_a^-1 x.
    hybrid (algorithm 2): the label is z'beta + x'theta_a, z = x (outer) y_a with item features y_a: beta is shared.
        Eliminating theta, with B_a = sum x z': A_0 = ridge I + sum z z' - sum_a B_a'A_a^-1 B_a,
        b_0 = sum label * z - sum_a B_a'A_a^-1 b_a, beta = A_0^-1 b_0, theta_a = A_a^-1 (b_a - B_a beta),
        s_a^2 = w'A_0^-1 w + x'A_a^-1 x, w = z - B_a'A_a^-1 x.

    Memory 8 * I * (D^2 + D * Z) bytes twice: for catalogues of some thousands, or the items that `candidates` shows.
    Equal scores come in the order of the items. Rows of unknown users or items are passed over.

    Args:
        user_id: int64 [U], users_UD their features (put a 1 among them). Users without a row have zeros.
        item_id: int64 [I], items_IE their features: hybrid; None: disjoint.
        alpha: of the bonus. ridge: of all coefficients.
        candidates: a policy whose slates of `num_candidates` are ranked anew; None: all items, there at any time.
    """

    deterministic = True

    def __init__(
        self,
        user_id: Tensor,
        users_UD: Tensor,
        item_id: Tensor,
        items_IE: Tensor | None = None,
        *,
        alpha: float = 1.0,
        ridge: float = 1.0,
        candidates: Policy | None = None,
        num_candidates: int = 100,
    ) -> None:
        for name, ids, features in (("users", user_id, users_UD), ("items", item_id, items_IE)):
            if features is not None and (features.ndim != 2 or len(features) != len(ids)):
                raise ValueError(f"features of {name} must be one row each, {len(ids)}, got {list(features.shape)}")
            if features is not None and not bool(features.isfinite().all()):
                row = int((~features.isfinite().all(1)).nonzero()[0])
                raise ValueError(f"features of {name} must be finite: row {row} ({int(ids[row])}) is not")
        if not ridge > 0 or not 0 <= alpha < math.inf:
            raise ValueError(f"ridge must be above 0 and alpha not below 0, got ridge={ridge}, alpha={alpha}")
        self.user_id, order = user_id.sort()
        self.users_UD = users_UD.double()[order]
        self.item_id, order = item_id.sort()
        self.items_IE = (
            torch.zeros(len(item_id), 0, dtype=torch.float64) if items_IE is None else items_IE[order].double()
        )
        self.alpha, self.candidates, self.num_candidates = alpha, candidates, num_candidates
        self.deterministic = candidates is None or getattr(candidates, "deterministic", False)
        num_items, num_own, num_shared = len(item_id), users_UD.shape[1], users_UD.shape[1] * self.items_IE.shape[1]
        self.a_IDD = (ridge * torch.eye(num_own, dtype=torch.float64)).repeat(num_items, 1, 1)
        self.b_ID = torch.zeros(num_items, num_own, dtype=torch.float64)
        self.cross_IDZ = torch.zeros(num_items, num_own, num_shared, dtype=torch.float64)
        self.shared_ZZ = ridge * torch.eye(num_shared, dtype=torch.float64)
        self.shared_Z = torch.zeros(num_shared, dtype=torch.float64)
        self.inverse_IDD = torch.zeros_like(self.a_IDD)
        self.gain_IZD = torch.zeros(num_items, num_shared, num_own, dtype=torch.float64)
        self._solve(torch.arange(num_items))

    def act(self, visits: Visits) -> Slates:
        """The items of highest upper bound."""
        device = visits.user_id.device
        known, row = rows_of(self.user_id, visits.user_id.cpu())
        x_SD = self.users_UD[row] * known[:, None]
        if self.candidates is None:
            arm_SC = None
            width = len(self.item_id)
        else:
            wanted = Visits(visits.user_id, visits.timestamp, visits.key, max(self.num_candidates, visits.k))
            candidate_SC = self.candidates.act(wanted).item_id.cpu()
            mine, arm_SC = rows_of(self.item_id, candidate_SC)
            mine &= candidate_SC >= 0
            width = candidate_SC.shape[1]
        slates = []
        step = max(1, _NUMBERS // max(1, width * (self.cross_IDZ.shape[1] + 1) * (self.cross_IDZ.shape[2] + 1)))
        for low in range(0, len(visits), step):
            part = slice(low, low + step)
            bound_SC = self.bounds(x_SD[part], None if arm_SC is None else arm_SC[part])
            if arm_SC is not None:
                bound_SC = bound_SC.masked_fill(~mine[part], -torch.inf)
            best = bound_SC.sort(dim=1, descending=True, stable=True).indices[:, : visits.k]
            if arm_SC is None:
                slates.append(self.item_id[best])
            else:
                slates.append(torch.where(mine[part].gather(1, best), self.item_id[arm_SC[part].gather(1, best)], -1))
        item_SK = padded(torch.cat(slates), visits.k).to(device)
        return Slates(item_SK, (item_SK >= 0).float() if self.deterministic else None)

    def bounds(self, x_SD: Tensor, arm_SC: Tensor | None = None) -> Tensor:
        """Upper bounds of items by their row (all if None) for user features, float64 [S, C]."""
        every = arm_SC is None
        inverse, gain, theta = self.inverse_IDD, self.gain_IZD, self.theta_ID
        items = self.items_IE
        if arm_SC is not None:
            inverse, gain, theta, items = inverse[arm_SC], gain[arm_SC], theta[arm_SC], items[arm_SC]
        own = "i" if every else "si"
        mean_SC = torch.einsum(f"{own}d,sd->si", theta, x_SD)
        variance_SC = torch.einsum(f"sd,{own}de,se->si", x_SD, inverse, x_SD)
        if self.items_IE.shape[1]:
            z_SCZ = torch.einsum(f"sd,{own}e->side", x_SD, items).flatten(2)
            mean_SC = mean_SC + z_SCZ @ self.beta_Z
            w_SCZ = z_SCZ - torch.einsum(f"{own}zd,sd->siz", gain, x_SD)
            half = torch.linalg.solve_triangular(self.root_ZZ, w_SCZ.flatten(0, 1).T, upper=False)
            variance_SC = variance_SC + half.square().sum(0).view(variance_SC.shape)
        return mean_SC + self.alpha * variance_SC.sqrt()

    def update(self, rows: Rows) -> None:
        """Add rows of a log: user_id, item_id and label."""
        known, user = rows_of(self.user_id, rows[USER_ID].cpu())
        mine, arm = rows_of(self.item_id, rows[ITEM_ID].cpu())
        row = (known & mine).nonzero()[:, 0]
        label_N, user, arm = rows[LABEL].cpu()[row].double(), user[row], arm[row]
        num_own, num_shared = self.cross_IDZ.shape[1:]
        for part in torch.arange(len(row)).split(max(1, _NUMBERS // (num_own * (num_own + num_shared)))):
            x_ND, y_N, at = self.users_UD[user[part]], label_N[part], arm[part]
            self.a_IDD.index_add_(0, at, x_ND[:, :, None] * x_ND[:, None, :])
            self.b_ID.index_add_(0, at, y_N[:, None] * x_ND)
            if num_shared:
                z_NZ = (x_ND[:, :, None] * self.items_IE[at][:, None, :]).flatten(1)
                self.cross_IDZ.index_add_(0, at, x_ND[:, :, None] * z_NZ[:, None, :])
                self.shared_ZZ += z_NZ.T @ z_NZ
                self.shared_Z += y_N @ z_NZ
        self._solve(arm.unique())

    def _solve(self, arms: Tensor) -> None:
        """Coefficients from the sums, of which those of `arms` have changed."""
        self.inverse_IDD[arms] = torch.cholesky_inverse(torch.linalg.cholesky(self.a_IDD[arms]))
        self.gain_IZD[arms] = (self.inverse_IDD[arms] @ self.cross_IDZ[arms]).mT
        left_ZZ = self.shared_ZZ - torch.einsum("izd,idy->zy", self.gain_IZD, self.cross_IDZ)
        self.root_ZZ = torch.linalg.cholesky(left_ZZ)
        right_Z = self.shared_Z - torch.einsum("izd,id->z", self.gain_IZD, self.b_ID)
        self.beta_Z = torch.cholesky_solve(right_Z[:, None], self.root_ZZ)[:, 0]
        own_ID = self.b_ID - self.cross_IDZ @ self.beta_Z
        self.theta_ID = (self.inverse_IDD @ own_ID[:, :, None])[:, :, 0]

"""What typical releases cost: epsilon by the rule that decides, beside the figure had every plan
been fixed beforehand (`python -m fedduet.scripts.bench.budget`: the table of docs/privacy.md)."""

from __future__ import annotations

from fedduet.lm.dp.accounting import Event, compose, compose_rdp, noise_multiplier_for
from fedduet.lm.dp.adaptive import compose_adaptively, noise_multiplier_on_top

DELTA, EPSILON = 1e-5, 8.0
SITES = {"450 records": (36 / 450, 125), "20,000 records": (512 / 20_000, 117)}


def main() -> None:
    """One row for each site and course of releases."""
    print("| site | plans | by the rule | fixed beforehand | by RDP |\n|---|---|---|---|---|")
    for site, (rate, steps) in SITES.items():

        def texts(epsilon: float, rounds: int = 1, rate: float = rate, steps: int = steps) -> Event:
            sigma = noise_multiplier_for(epsilon, DELTA, rate, steps, rounds)
            return Event.poisson_gaussian(sigma, rate, steps).times(rounds)

        half = texts(EPSILON / 2)
        votes = Event.gaussian(noise_multiplier_on_top(EPSILON, DELTA, 1.0, 1, 3, [half]), 3)
        second = noise_multiplier_on_top(EPSILON, DELTA, rate, steps, 1, [half])
        courses = {
            "FDKT, one round": [texts(EPSILON)],
            "FDKT, three rounds": [texts(EPSILON, 3)],
            "FDKT at 4, then three rounds of votes": [half, votes],
            "FDKT at 4, then another run's": [half, Event.poisson_gaussian(second, rate, steps)],
        }
        for name, plans in courses.items():
            figures = [act(plans, DELTA) for act in (compose_adaptively, compose, compose_rdp)]
            print(f"| {site} | {name} | " + " | ".join(f"{one:.2f}" for one in figures) + " |")


if __name__ == "__main__":
    main()

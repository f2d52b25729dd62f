"""Candidates as a user names them on the command line."""

from river import dummy, linear_model, optim, preprocessing, stats

from riverkeeper import Model


def rates() -> dict[str, Model]:
    def line(rate: float) -> Model:
        return Model(
            lambda: preprocessing.StandardScaler() | linear_model.LinearRegression(optimizer=optim.SGD(rate)),
            features=("level", "drift"),
        )

    return {f"sgd {rate}": line(rate) for rate in (0.1, 0.01)}


nothing: dict[str, Model] = {}
strange = {"strange": Model(lambda: dummy.StatisticRegressor(stats.Mean()), features=("levle",))}

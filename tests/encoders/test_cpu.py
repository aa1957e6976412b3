from threading import Barrier, Thread

from ood_audit.encoders import cpu


def test_computations_at_once_leave_numpys_threads_as_they_were():
    import numpy as np
    from threadpoolctl import threadpool_info

    def blas() -> list[int]:
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    np.ones((2, 2)) @ np.ones((2, 2))
    before, both = blas(), Barrier(2)
    seen: dict[str, list[int]] = {}

    def compute(name: str) -> None:
        results = cpu.mapped(lambda value: value, range(3))
        next(results)
        both.wait(30)  # both have begun
        if name == "last":
            first.join(30)
            seen["inside"] = blas()
        seen[name] = list(results)

    first, last = Thread(target=compute, args=["first"]), Thread(target=compute, args=["last"])
    first.start()
    last.start()
    last.join(60)
    assert seen["first"] == seen["last"] == [1, 2]
    assert blas() == before
    assert seen["inside"] == [cpu.side_by_side(cpu.thread_count())[1]] * len(before)

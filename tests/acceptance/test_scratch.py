import cProfile, pstats
from tests.whole import *
def test_x(store):
    whole(store,"warm")
    pr=cProfile.Profile(); pr.enable(); whole(store,"gone"); pr.disable()
    pstats.Stats(pr).sort_stats("cumtime").print_stats(70)

"""The table of public sets. A set is one entry here and its reader.

Hashes are those of `examples.datasets.numbering` and `published`, over the versions that the literature measures on.
Amazon 2014: S3-Rec's files, and UniTok's for Office Products. Amazon 2018: CollisionGenRec's. MovieLens-1M: SASRec's.
"""

from __future__ import annotations

from examples.datasets.amazon import AttributeRule, Table2014, read_2014, read_2018
from examples.datasets.downloads import Download, Downloads
from examples.datasets.kuairand_pure import LATE_PART, read_kuairand_pure
from examples.datasets.movielens import read_movielens
from examples.datasets.published import Check, Converted, PublicSet
from examples.datasets.ratings_and_slates import read_coat, read_kuairand_exposure, read_slates

__all__ = ["SETS"]

AMAZON_TERMS = "no formal licence; for research, with a request to cite; product texts belong to their owners"
TIES = "many reviews share a day, and within a day the order is that of ASINs: report it, or data.shuffle_ties"
TEXT_VECTORS = "short_text is the start of the title, so vectors of it differ from those of papers with other texts"
CC_BY_SA = "CC BY-SA 4.0"


def _amazon_2014(
    name: str, category: str, table: Table2014, counts: tuple[int, int, int], *checks: Check, short_text: bool = True
) -> PublicSet:
    folder = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
    files = (f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz")

    def read(downloads: Downloads) -> Converted:
        return read_2014(downloads, category, table)

    return PublicSet(
        name,
        f"Amazon 2014, {category.replace('_', ' ')}, 5-core: reviews in order, item texts",
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        (
            Download(files[0], f"{folder}/{files[0]}", f"{counts[2]:,} lines"),
            Download(files[1], f"{folder}/{files[1]}"),
        ),
        AMAZON_TERMS,
        dict(zip(("users", "items", "interactions"), counts, strict=True)),
        read,
        checks,
        f"{name}.yaml",
        (TIES, TEXT_VECTORS) if short_text else (TIES,),
    )


def _sequences(numbering: str, sequences: str, contents: str) -> Check:
    return Check("sequences", {"numbering": numbering, "sequences": sequences, "contents": contents})


def _attributes(numbering: str, frequencies: str) -> Check:
    return Check("attributes", {"numbering": numbering, "frequencies": frequencies}, required=False)


def _read_scientific(downloads: Downloads) -> Converted:
    return read_2018(downloads, "Industrial_and_Scientific")


WITH_ATTRIBUTES = ("item_id", "asin", "short_text", "attributes", "title", "categories", "brand")

ENTRIES = (
    _amazon_2014(
        "amazon-beauty",
        "Beauty",
        Table2014(WITH_ATTRIBUTES, AttributeRule(least=5, skip=1)),
        (22_363, 12_101, 198_502),
        _sequences(
            "7a4dc375ace206b50e9445ee61836c948a8e499a05522b07444d9353c7b2880d",
            "5dcb5c2f834a951668bad9dfec658c064f0650b8775ac29332be2a61cf4f729c",
            "d582e73401aec847525d4eb6703ae6891319bef9ccc26e62821adeee0c72227c",
        ),
        _attributes(
            "216927b173374c1e2b321306a016ac7a210139142f81a7546778403008c568a8",
            "5a1e964ce46b65518353d0d6690b61c1af1945f7ae10c19795801a83c8359a5c",
        ),
    ),
    _amazon_2014(
        "amazon-sports",
        "Sports_and_Outdoors",
        Table2014(WITH_ATTRIBUTES, AttributeRule(least=2, skip=0, without_brand="Unknown")),
        (35_598, 18_357, 296_337),
        _sequences(
            "ead92ccd7d85b6446840f7a4279d3d1879d8a899e0f4216b0724ac2e5fdf15d4",
            "ab726dd978556c371311513cdead0ce67e9d606254b67b45430ebff6a0bbc2bd",
            "da3a8f34f1d8bca8ea0cd4385242f311c5070098d3f7b2abc0b3b58a1c72828d",
        ),
        _attributes(
            "54d15e55e4ac3e7bc2e77481d2985ae6261b74b3da7ce463021446e38046d54a",
            "e4571b2f40a3e15ebb5861e34d7a11eb88c44281c450aa1e0b147de1b12a6790",
        ),
    ),
    _amazon_2014(
        "amazon-toys",
        "Toys_and_Games",
        Table2014(WITH_ATTRIBUTES, AttributeRule(least=2, skip=0, without_brand="Unknown")),
        (19_412, 11_924, 167_597),
        _sequences(
            "ce951c75c023796420a02ade1d0263fe519c9860a0c376781bbc1ff3af6acd6b",
            "98c5ce176165fd286b439c3eaf081f434dfbbd3f1b9b52932efbe9a92fc03c49",
            "5b11ff6b37860850a64f99251ff9bfb7a75f55bae736b2096ebcbd467f627893",
        ),
        _attributes(
            "3cb648377dcd8efdf3d51f0b1e6bac049a1e833a06128ee4c38842e857273106",
            "5c12342d6a620b858de8cf949d048574e63fbbc79b3ef3a6ca8fe6bde88b242d",
        ),
    ),
    _amazon_2014(
        "amazon-office",
        "Office_Products",
        Table2014(("item_id", "asin", "title", "brand", "description"), by_asin=True),
        (4_905, 2_420, 53_258),
        _sequences(
            "a1bf1c402dd03e60f1608bb49a2caae1b29803f6a578963b8ed4ffe043dcd2f7",
            "c70adced8421f1344d63467821af8f66927a9600e2b19642919e81b5fbda3aea",
            "5ed87793d601e621f290a53749fff6c71fb0c2661f2cc4455fe2ecb90046d667",
        ),
        short_text=False,
    ),
    PublicSet(
        "amazon18-scientific",
        "Amazon 2018, Industrial and Scientific, 5-core: reviews in order, item texts",
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
        (
            Download(
                "Industrial_and_Scientific_5.json.gz",
                "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/categoryFilesSmall/"
                "Industrial_and_Scientific_5.json.gz",
                "11 MB",
            ),
            Download(
                "meta_Industrial_and_Scientific.json.gz",
                "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/metaFiles2/"
                "meta_Industrial_and_Scientific.json.gz",
                "84 MB",
            ),
        ),
        AMAZON_TERMS,
        {"users": 8_317, "items": 4_344, "interactions": 58_492},
        _read_scientific,
        (
            Check(
                "sequences",
                {
                    "numbering": "f833908ada71c0d2431d36c6f823699c6b7461a54fbf101e9933d30b8f6acdc6",
                    "shape": "6abe9f98ece92c13620fe904a8714a9400bab8b103669cfb000a9e2e31224a5d",
                },
            ),
        ),
        "amazon18-scientific.yaml",
        (TIES,),
    ),
    PublicSet(
        "ml-1m",
        "MovieLens-1M, the version of SASRec: ratings in order, films, users",
        "https://grouplens.org/datasets/movielens/1m/",
        (
            Download(
                "ml-1m.zip",
                "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
                "6 MB",
                md5="c4d9eecfca2ab87c1945afe126590906",
            ),
        ),
        "research use, with acknowledgement; no redistribution; no commercial use without permission (GroupLens)",
        {"users": 6_040, "items": 3_416, "interactions": 999_611},
        read_movielens,
        (
            Check(  # the published file has numbers of its own
                "sequences",
                {
                    "sequences": "f80a1ea76edd318ff3ba0fb711ead45db405b1c9c55a70cf49ab4541725c24bc",
                    "contents": "c2a773b3287adbd283a1254731c3167e61be2c8179e684e15ce588505fb7cb90",
                },
            ),
        ),
        cautions=("numbers that rank against 100 sampled negatives are not comparable",),
    ),
    PublicSet(
        "coat",
        "24 ratings of coats of own choice and 16 of random ones a user",
        "https://www.cs.cornell.edu/~schnabts/mnar/",
        (Download("coat.zip", "https://www.cs.cornell.edu/~schnabts/mnar/coat.zip"),),
        "none stated; for research, with a request to cite (Schnabel et al. 2016)",
        {"users": 290, "items": 300, "chosen ratings": 6_960, "random ratings": 4_640},
        read_coat,
        (
            Check(
                "ratings",
                {
                    "rows": "959eaa162864295d40dcee7529aaab15acd3642c3545222197f35db597346a92",
                    "unordered rows": "96075e5de18ac342fd037460bba0feaa1f725257803c27c70a53821e15b58621",
                },
            ),
        ),
        "coat.yaml",
        ("fit nothing on the random ratings, which are the test",),
    ),
    PublicSet(
        "slate-sim",
        "simulated slates of 25 places with clicks, and 150 random ratings a user (AutoDebias)",
        "https://github.com/DongHande/AutoDebias",
        (Download("datasets/simulation/{user,random}.txt", "https://github.com/DongHande/AutoDebias"),),
        "MIT",
        {"users": 500, "items": 500, "impressions": 12_500, "random ratings": 75_000},
        read_slates,
        (
            Check(
                "impressions",
                {
                    "rows": "0524ea48a2cbc4e6b1b2ea15c5ea910491db2688d9ed7ca21da609fd06a25e43",
                    "unordered rows": "5041dd5da142a510e95d980ea67ae75535ccab6108a46c00f0c2c0b49133b54a",
                },
            ),
            Check(
                "random ratings",
                {
                    "rows": "e0001179807995be19e54abc2fe5560157f51f8070f7383a15e7127dd29e7da2",
                    "unordered rows": "beb5bdbf14dc6fe21d9e1e2dbcb89e83e577ba86364486ee7ddfadb15229718d",
                },
            ),
        ),
        "slate-sim.yaml",
    ),
    PublicSet(
        "kuairand-exposure",
        "KuaiRand as SIGformer has it: videos shown, with a label, no time",
        "https://github.com/StupidThree/SIGformer",
        (Download("data/KuaiRand/{train,valid,test}.txt", "https://github.com/StupidThree/SIGformer"),),
        f"{CC_BY_SA} (KuaiRand); the repository states none",
        {"users": 16_974, "items": 4_373, "impressions": 263_100},
        read_kuairand_exposure,
        (
            Check(
                "impressions",
                {
                    "rows": "e62b846cb6272f5888a8f4802499835a5f5431b0dba0e8c437cb8c37bb75bf05",
                    "unordered rows": "97b4c6dc59a13fbae24f1bb9378a3ed2b2fcfbed8c21f5e4bc89ef32aa04aa2b",
                },
            ),
        ),
        "kuairand-exposure.yaml",
        ("some pairs are in several parts of the source's split: measure on none of it unless they are dropped",),
    ),
    PublicSet(
        "kuairand-pure",
        "KuaiRand-Pure: a month of videos shown, with time and all signals, and uniformly random exposures",
        "https://kuairand.com/",
        (
            Download(
                "KuaiRand-Pure.tar.gz",
                "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
                "47 MB",
                md5="0820331067a3784d9691136f772b35a7",
            ),
        ),
        CC_BY_SA,
        {"users": 27_285, "items": 7_583, "impressions": 1_436_609, "random exposures": 1_186_059},
        read_kuairand_pure,
        (
            Check(
                LATE_PART,
                {
                    "rows": "90ba87574b69e85cef34230c81177f98d00967a31728cfca95251e047e3122dc",
                    "unordered rows": "7e6e68f0f2a824d8eab23653445e7d1260cf3a6636323f22376e33cba45121d6",
                },
            ),
        ),
        cautions=(
            "monthly counts of items.parquet cover the whole month: they leak into any split by time",
            "the random exposures are a test: fit nothing on them",
        ),
    ),
)
SETS = {entry.name: entry for entry in ENTRIES}

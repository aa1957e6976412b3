"""A long report on several pages, so that each stays fast and small."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

from ood_audit.images.uri import in_picture
from ood_audit.reports.model import Finding, Page, Section
from ood_audit.reports.neighbours import LISTED
from ood_audit.reports.thumbnails import MOST

LENGTH = 5_000  # pictures on a page; browsers stay smooth, and the file small enough to be sent


def file_name(number: int) -> str:
    """The name of the file of a page: `report.html`, `report-2.html`."""
    return "report.html" if number == 1 else f"report-{number}.html"


def split(whole: Page, length: int) -> list[Page]:
    """The pages of a report, each with at most `length` findings, in the order of the whole."""
    listed = [finding.image.image_id for finding in findings(whole)]
    starts = range(0, max(len(listed), 1), length)
    pages = [_page(whole, start, length, frozenset(listed)) for start in starts]
    return [replace(page, number=number, pages=len(pages)) for number, page in enumerate(pages, 1)]


def findings(page: Page) -> Iterator[Finding]:
    """The findings on a page, in order."""
    return chain.from_iterable(group.findings for section in page.sections for group in section.groups)


def wanted(page: Page) -> list[str]:
    """The URIs of the pictures that a page shows, the most wanted first."""
    listed = list(findings(page))
    # The pictures of all neighbours of thousands of images would take minutes to make, and more room than there is.
    near = chain.from_iterable(finding.scored.neighbours for finding in listed[:LISTED])
    first = chain(
        (finding.image for finding in listed),
        (finding.twin for finding in listed if finding.twin is not None),
        chain.from_iterable(page.typical.values()),
    )
    around = (uri for finding in listed if (uri := in_picture(finding.image.uri)) is not None)
    uris = chain((image.uri for image in first), around, (image.uri for image in near))
    return list(islice(dict.fromkeys(uris), MOST))


def _page(whole: Page, start: int, length: int, listed: Collection[str]) -> Page:
    """The page that has the findings from number `start` on."""
    sections = list(_sections(whole.sections, start, start + length))
    page = replace(whole, sections=sections)
    here = {finding.image.image_id for finding in findings(page)}
    classes = {label for finding in findings(page) for label in (finding.scored.given, finding.scored.label)}
    return replace(
        page,
        typical={label: images for label, images in whole.typical.items() if label in classes},
        points=[point for point in whole.points if point.image_id in here or point.image_id not in listed],
    )


def _sections(sections: Sequence[Section], start: int, stop: int) -> Iterator[Section]:
    """All sections, with their findings from number `start` to `stop`."""
    seen = 0
    for section in sections:
        groups = []
        first = seen
        for group in section.groups:
            own = group.findings[max(start - seen, 0) : max(stop - seen, 0)]
            seen += len(group.findings)
            if own or (not group.findings and start == 0):
                groups.append(replace(group, findings=own, elsewhere=len(group.findings) - len(own)))
        yield replace(section, groups=groups, page=first // (stop - start) + 1)

"""Pictures of a run's page, for docs/report.md: python tools/pictures.py RUN writes RUN/pictures/*.png."""

import sys
import tempfile
import time
from pathlib import Path

from browser import DESKTOP, PHONE, chromium, missing_browser, open_page

from opbench.report import write_page
from opbench.results.published import open_run

SETTLE_S = 0.5
"""For the canvas to be painted after it is drawn."""


def main(run: str) -> None:
    if reason := missing_browser():
        sys.exit(f"pictures need a browser: {reason}")
    folder = Path(run) / "pictures"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        page = write_page([open_run(Path(run))], Path(temporary) / "report.html")
        with chromium(DESKTOP) as driver:
            open_page(driver, page)
            picture(driver, folder / "report-tables.png")
            driver.execute_script(
                "panels.find(p => p.kindName === 'roofline').node.scrollIntoView({behavior: 'instant'})"
            )
            picture(driver, folder / "report-roofline.png")
        with chromium(PHONE, dark=True) as driver:
            open_page(driver, page)
            picture(driver, folder / "report-phone.png")


def picture(driver, path: Path) -> None:
    time.sleep(SETTLE_S)
    driver.save_screenshot(str(path))
    print(path)


if __name__ == "__main__":
    main(sys.argv[1])

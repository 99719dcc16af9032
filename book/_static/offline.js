// Opened as files, pages may not read each other, so search shows titles without the lines around what it found.
if (window.location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

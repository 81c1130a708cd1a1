package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

// A browser is a headless Chromium with a profile of its own.
type browser struct {
	t   *testing.T
	ctx context.Context
	url string
}

// newBrowser starts Chromium. Where it is not installed the test is skipped,
// but not in CI.
func newBrowser(t *testing.T, url string) *browser {
	path, err := exec.LookPath("chromium")
	if err != nil && os.Getenv("CI") == "" {
		t.Skip("chromium is not installed")
	}
	require.NoError(t, err)
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.Env("TMPDIR="+t.TempDir()), // it leaves folders behind
		chromedp.NoSandbox,                  // it refuses to run as root with one
		chromedp.DisableGPU,
		chromedp.NoFirstRun,
		// Nothing but the page under test is asked for.
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-quic", true))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	t.Cleanup(func() { _ = chromedp.Cancel(ctx) }) // waits until it has gone
	b := &browser{t, ctx, url}
	b.phone()
	return b
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	require.NoError(b.t, chromedp.Do(b.ctx, actions...))
}

func (b *browser) phone() {
	b.do(chromedp.EmulateViewport(390, 844, chromedp.EmulateScale(2), chromedp.EmulateMobile))
}
func (b *browser) desktop() { b.do(chromedp.EmulateViewport(1280, 900)) }

func (b *browser) visit(path string) { b.do(chromedp.Navigate(b.url + path)) }

// press clicks what leads to another page, and waits for that.
func (b *browser) press(selector string) {
	b.t.Helper()
	_, err := chromedp.RunResponse(b.ctx, chromedp.Click(chromedp.CSS(selector)))
	require.NoError(b.t, err)
}

func (b *browser) fill(selector, text string) {
	b.do(chromedp.SendKeys(chromedp.CSS(selector), text))
}

func (b *browser) text(selector string) string {
	b.t.Helper()
	text, err := chromedp.Run(b.ctx, chromedp.Text(chromedp.CSS(selector)))
	require.NoError(b.t, err)
	return strings.TrimSpace(text)
}

func evaluate[T any](b *browser, script string) T {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](script))
	require.NoError(b.t, err)
	return value
}

// posts returns the codes of the photos on the page.
func (b *browser) posts() []string {
	return evaluate[[]string](b, `[...document.querySelectorAll("article.post")].map(a => a.id.slice(2))`)
}

// screenshot keeps a picture of the page as an artifact of the test, and sees
// to it that the page fits the screen and shows all its images.
func (b *browser) screenshot(name string) {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		return evaluate[bool](b, `[...document.images].every(i => i.loading == "lazy" || i.complete && i.naturalWidth > 0)`)
	}, 20*time.Second, 20*time.Millisecond, "images")
	wide := evaluate[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`)
	require.Zero(b.t, wide, "%s is wider than the screen", name)
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	require.NoError(b.t, err)
	require.NoError(b.t, os.WriteFile(filepath.Join(b.t.ArtifactDir(), name+".png"), png, 0o644))
}

func (b *browser) signUp(name string) {
	b.visit("/signup")
	b.fill("#name", name)
	b.fill("#password", "correct horse")
	b.press("button[name=signup]")
}

// TestTwoPeopleInTheBrowser is the main use, seen through a real browser. The
// pages have no script, so it shows what everyone gets.
func TestTwoPeopleInTheBrowser(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ada, bob := newBrowser(t, s.url), newBrowser(t, s.url)

	ada.visit("/")
	ada.screenshot("01-landing-phone")
	ada.signUp("ada")
	ada.screenshot("02-empty-feed-phone")
	bob.signUp("bob")

	bob.visit("/people")
	bob.screenshot("03-people-phone")
	bob.press("#u-ada button[name=follow]")
	require.Equal(t, "Following", bob.text("#u-ada button[name=unfollow]"))

	file, err := filepath.Abs("testdata/coffee.jpg")
	require.NoError(t, err)
	ada.press("#tab-upload")
	ada.do(chromedp.SetUploadFiles(chromedp.CSS("#photo"), []string{file}))
	ada.fill("#caption", "First one today.")
	ada.screenshot("04-upload-phone")
	ada.press("button[name=upload]")
	ada.screenshot("05-photo-phone")
	photo := ada.posts()[0]

	s.fannedOut(t)
	bob.visit("/")
	require.Equal(t, []string{photo}, bob.posts(), "at the top of the follower's feed")
	require.Contains(t, bob.text(".caption"), "First one today.")
	bob.press("button[name=like]")
	require.Equal(t, "1 like", bob.text("#p-"+photo+" .likes"))
	bob.screenshot("06-feed-liked-phone")
	ada.visit("/p/" + photo)
	require.Equal(t, "1 like", ada.text(".likes"))

	// The author shares 29 more, and the follower pages back through all 30.
	author := s.visitor(t, "ada")
	author.logIn()
	want := []string{photo}
	for i := range 29 {
		m := motifs[i%len(motifs)]
		want = append([]string{author.share(readPhoto(t, m.file), m.captions[i%len(m.captions)])}, want...)
	}
	bob.visit("/people")
	require.Equal(t, "29", strings.TrimSuffix(bob.text("#tab-home .badge"), "\nnew"))
	bob.screenshot("07-badge-phone")
	bob.visit("/")
	require.Equal(t, "29 new photos", bob.text("#new"))
	bob.screenshot("07-feed-phone")
	got := bob.posts()
	for evaluate[bool](bob, `document.querySelector("#older") != null`) {
		bob.press("#older")
		got = append(got, bob.posts()...)
	}
	require.Equal(t, want, got, "30 photos without a gap or a repeat")

	bob.press("#p-" + photo + " .author a")
	bob.screenshot("08-profile-phone")
	require.Equal(t, "30", bob.text("#photos"))
	require.Equal(t, "1", bob.text("#followers"))

	for _, fan := range []string{"cleo", "dan", "esme"} {
		f := s.signUp(t, fan)
		f.post("/u/ada/follow", nil)
		for _, code := range want[:2] {
			f.post("/p/"+code+"/like", nil)
		}
	}
	ada.visit("/activity")
	require.Equal(t, "esme, dan and 1 other", ada.text("#n-"+evaluate[string](ada, `document.querySelector(".notices li").id.slice(2)`)+" b"))
	ada.screenshot("17-activity-phone")

	bob.visit("/u/nobody")
	bob.screenshot("09-not-found-phone")
	bob.visit("/login")
	ada.visit("/signup")

	bob.desktop()
	for name, path := range map[string]string{
		"10-feed-desktop": "/", "11-profile-desktop": "/u/ada", "12-photo-desktop": "/p/" + photo,
		"13-people-desktop": "/people", "14-upload-desktop": "/upload",
	} {
		bob.visit(path)
		bob.screenshot(name)
	}
	ada.desktop()
	ada.visit("/activity")
	ada.screenshot("18-activity-desktop")
	bob.visit("/u/bob")
	bob.press("button[name=logout]")
	bob.visit("/")
	bob.screenshot("15-landing-desktop")
	bob.visit("/login")
	bob.fill("#name", "bob")
	bob.fill("#password", "wrong horse")
	bob.press("button[name=login]")
	bob.screenshot("16-wrong-password-desktop")
}

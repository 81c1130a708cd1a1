package web_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/imaging"
	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/examples/photoshare/web"
)

func TestErrorsBecomePages(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		err    error
		status int
		text   string
	}{
		{"NotFound", store.ErrNotFound, 404, "mistyped"},
		{"Invalid", &store.InvalidError{Field: "name", Reason: "You cannot follow yourself."}, 422, "You cannot follow yourself."},
		{"NameTaken", store.ErrNameTaken, 409, "Choose another one"},
		{"WrongPassword", store.ErrWrongPassword, 401, "name or the password"},
		{"NotJPEG", imaging.ErrNotJPEG, 415, "no JPEG"},
		{"Damaged", imaging.ErrDamaged, 422, "damaged"},
		{"TooLarge", imaging.ErrTooLarge, 413, "10 MB"},
		{"TooManyPixels", imaging.ErrTooManyPixels, 422, "too many pixels"},
		{"Cursor", web.ErrCursor, 400, "Start again"},
		{"Form", web.ErrForm, 400, "one piece"},
		{"Body", &http.MaxBytesError{Limit: 1}, 413, "larger than we take"},
		{"Sessions", web.ErrSessions, 503, "few seconds"},
		{"Deadline", context.DeadlineExceeded, 503, "few seconds"},
		{"Other", errors.New("anything"), 500, "our fault"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, log := bare(t)
			w := get(s.Fails(fmt.Errorf("secret.internal:5432: %w", test.err)), "/x?password=hunter2")
			body, id := w.Body.String(), w.Header().Get("X-Request-Id")
			require.Equal(t, test.status, w.Code)
			require.Contains(t, body, test.text)
			require.NotContains(t, body, "secret")
			require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
			require.Equal(t, test.status >= 500, strings.Contains(body, id), "the ID is on the page")
			require.Equal(t, test.status == 503, w.Header().Get("Retry-After") != "")

			line := log.String()
			require.Equal(t, test.status >= 500, strings.Contains(line, "level=ERROR"), line)
			for _, part := range []string{"id=" + id, "method=GET", "path=/x ", fmt.Sprintf("status=%d", test.status), "took=", "secret.internal"} {
				require.Contains(t, line, part)
			}
			require.NotContains(t, line, "hunter2")
		})
	}
}

func TestPanicBecomesAPage(t *testing.T) {
	t.Parallel()
	s, log := bare(t)
	w := get(s.Does(func(http.ResponseWriter) { panic("secret") }), "/")
	require.Equal(t, 500, w.Code)
	require.Contains(t, w.Body.String(), w.Header().Get("X-Request-Id"))
	require.NotContains(t, w.Body.String(), "secret")
	require.Contains(t, log.String(), "secret")
	require.Contains(t, log.String(), "failure_test.go", "the stack")

	require.PanicsWithValue(t, http.ErrAbortHandler, func() {
		get(s.Does(func(http.ResponseWriter) { panic(http.ErrAbortHandler) }), "/")
	})
}

func TestPanicInTheMiddleIsNoSuccess(t *testing.T) {
	t.Parallel()
	s, log := bare(t)
	w := get(s.Does(func(w http.ResponseWriter) {
		w.Write([]byte("half"))
		panic("gone")
	}), "/")
	require.Equal(t, "half", w.Body.String(), "no page below it")
	require.Contains(t, log.String(), "status=500")
}

func TestVisitorWhoLeftIsNoError(t *testing.T) {
	t.Parallel()
	s, log := bare(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	do(s.Fails(fmt.Errorf("store: home: %w", context.Canceled)), httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx))
	require.Contains(t, log.String(), "status=499")
	require.NotContains(t, log.String(), "ERROR")
}

func TestFormsHaveALimit(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	h := s.Enters("login", func(context.Context, string, string) (store.User, error) { return store.User{}, store.ErrWrongPassword })
	require.Equal(t, 413, post(h, "/login", url.Values{"name": {strings.Repeat("x", 64<<10)}}).Code)
	require.Equal(t, 401, post(h, "/login", url.Values{"name": {strings.Repeat("x", 60<<10)}}).Code)

	r := httptest.NewRequest(http.MethodPost, "/login", strings.NewReader("name=%zz"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	require.Equal(t, 400, do(h, r).Code)
}

func TestAccountFormKeepsEverythingButThePassword(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, form string
		err        error
		status     int
		problem    string
	}{
		{"BadName", "signup", &store.InvalidError{Field: "name", Reason: "Choose <better>."}, 422, `<p class="problem" id="name-problem">Choose &lt;better&gt;.</p>`},
		{"BadPassword", "signup", &store.InvalidError{Field: "password", Reason: "Longer."}, 422, `<p class="problem" id="password-problem">Longer.</p>`},
		{"Taken", "signup", store.ErrNameTaken, 409, `id="name-problem"`},
		{"Wrong", "login", store.ErrWrongPassword, 401, `id="password-problem"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, log := bare(t)
			h := s.Enters(test.form, func(_ context.Context, name, password string) (store.User, error) {
				require.Equal(t, `an"na`, name)
				require.Equal(t, "hunter2", password)
				return store.User{}, fmt.Errorf("store: %w", test.err)
			})
			w := post(h, "/"+test.form, url.Values{"name": {`an"na`}, "password": {"hunter2"}, "next": {"/people"}})
			body := w.Body.String()
			require.Equal(t, test.status, w.Code)
			require.Contains(t, body, test.problem)
			require.Contains(t, body, `value="an&#34;na"`)
			require.Contains(t, body, `name="next" value="/people"`)
			require.Contains(t, body, `id="`+test.form+`"`)
			require.NotContains(t, body+log.String(), "hunter2")
			require.Empty(t, w.Header().Get("Set-Cookie"))
		})
	}
}

func TestAccountErrorWithoutAFieldIsAPage(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	h := s.Enters("login", func(context.Context, string, string) (store.User, error) { return store.User{}, errors.New("down") })
	w := post(h, "/login", url.Values{"name": {"anna"}, "password": {"hunter2"}})
	require.Equal(t, 500, w.Code)
	require.NotContains(t, w.Body.String(), "hunter2")
}

// upload posts the parts of a form, in order; a part called photo is a file.
func upload(t *testing.T, h http.Handler, parts ...[2]string) *httptest.ResponseRecorder {
	t.Helper()
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	for _, part := range parts {
		create := m.CreateFormField
		if part[0] == "photo" {
			create = func(name string) (io.Writer, error) {
				return m.CreateFormFile(name, "a.jpg")
			}
		}
		w, err := create(part[0])
		require.NoError(t, err)
		_, err = w.Write([]byte(part[1]))
		require.NoError(t, err)
	}
	require.NoError(t, m.Close())
	r := httptest.NewRequest(http.MethodPost, "/upload", &b)
	r.Header.Set("Content-Type", m.FormDataContentType())
	return do(h, r)
}

func TestUploadIsReadWhole(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	var gotPhoto, gotCaption string
	h := s.ReadsUpload(func(jpeg []byte, caption string) { gotPhoto, gotCaption = string(jpeg), caption })
	largest := strings.Repeat("x", imaging.MaxBytes)
	for _, test := range []struct {
		name           string
		parts          [][2]string
		status         int
		photo, caption string
	}{
		{"PhotoFirst", [][2]string{{"photo", "jpeg"}, {"caption", "c"}}, 200, "jpeg", "c"},
		{"CaptionFirst", [][2]string{{"caption", "c"}, {"other", "x"}, {"photo", "jpeg"}}, 200, "jpeg", "c"},
		{"LinesAsTheFieldCountsThem", [][2]string{{"photo", "jpeg"}, {"caption", "\r\n a\r\nb \n"}}, 200, "jpeg", "a\nb"},
		{"NoCaption", [][2]string{{"photo", "jpeg"}}, 200, "jpeg", ""},
		{"Largest", [][2]string{{"photo", largest}, {"caption", "c"}}, 200, largest, "c"},
		{"NoPhoto", [][2]string{{"photo", ""}, {"caption", "c"}}, 422, "", "c"},
		{"NothingAtAll", nil, 422, "", ""},
		{"TooLarge", [][2]string{{"caption", "c"}, {"photo", largest + strings.Repeat("x", 64<<10)}}, 413, "", "c"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := upload(t, h, test.parts...)
			require.Equal(t, test.status, w.Code)
			require.Equal(t, test.caption, gotCaption)
			require.Equal(t, test.status == 413, strings.Contains(w.Body.String(), "10 MB"), "it is the photo")
			if test.status == 200 {
				require.True(t, test.photo == gotPhoto)
			}
		})
	}

	r := httptest.NewRequest(http.MethodPost, "/upload", strings.NewReader("photo=x"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	require.Equal(t, 400, do(h, r).Code, "no multipart form")

	r = httptest.NewRequest(http.MethodPost, "/upload", strings.NewReader("--b\r\nContent-Disposition: form-data; name=\"photo\"\r\n\r\nhalf"))
	r.Header.Set("Content-Type", "multipart/form-data; boundary=b")
	require.Equal(t, 400, do(h, r).Code, "cut off")
}

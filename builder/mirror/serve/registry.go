package serve

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	maxIndex      = 16 << 20
	refAnnotation = "org.opencontainers.image.ref.name"
	indexPath     = "oci/index.json"
	blobsPath     = "oci/blobs/sha256/"
)

// Paths of the Distribution Specification v1.1, "Endpoints".
var (
	manifestPath  = regexp.MustCompile(`^/v2/(.+)/manifests/([^/]+)$`)
	blobPath      = regexp.MustCompile(`^/v2/(.+)/blobs/([^/]+)$`)
	tagsPath      = regexp.MustCompile(`^/v2/(.+)/tags/list$`)
	digestPattern = regexp.MustCompile(`^sha256:([0-9a-f]{64})$`)
)

// refuse is an error as the specification has them ("Error Codes").
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// index reads what the layout holds; a mirror without images has an empty one.
func (s *Server) index() (*v1.IndexManifest, error) {
	f, err := s.root.Open(indexPath)
	if err != nil {
		return &v1.IndexManifest{}, nil
	}
	defer f.Close()
	var index v1.IndexManifest
	return &index, json.NewDecoder(io.LimitReader(f, maxIndex)).Decode(&index)
}

// repository and tag of an entry of the layout.
func nameOf(d v1.Descriptor) (repository, tag string) {
	ref := d.Annotations[refAnnotation]
	i := strings.LastIndex(ref, ":")
	if i < 0 {
		return ref, ""
	}
	return ref[:i], ref[i+1:]
}

func (s *Server) registry(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	index, err := s.index()
	if err != nil {
		refuse(w, http.StatusInternalServerError, "UNKNOWN", "the mirror's image layout cannot be read; run slipway mirror verify")
		return
	}
	p := r.URL.Path
	switch {
	case p == "/v2" || p == "/v2/":
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, "{}")
	case p == "/v2/_catalog":
		list(w, r, "repositories", "", repositories(index))
	case tagsPath.MatchString(p):
		name := tagsPath.FindStringSubmatch(p)[1]
		if tags := tagsOf(index, name); len(tags) > 0 {
			list(w, r, "tags", name, tags)
			return
		}
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "there is no repository "+name)
	case manifestPath.MatchString(p):
		m := manifestPath.FindStringSubmatch(p)
		s.manifest(w, r, index, m[1], m[2])
	case blobPath.MatchString(p):
		m := blobPath.FindStringSubmatch(p)
		s.blob(w, r, index, m[1], m[2])
	default:
		refuse(w, http.StatusNotFound, "UNSUPPORTED", "there is no such endpoint")
	}
}

func repositories(index *v1.IndexManifest) []string {
	var all []string
	for _, d := range index.Manifests {
		name, _ := nameOf(d)
		all = append(all, name)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func tagsOf(index *v1.IndexManifest, name string) []string {
	var tags []string
	for _, d := range index.Manifests {
		if n, tag := nameOf(d); n == name {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags
}

// list answers with names, in pages if the client asks for them.
func list(w http.ResponseWriter, r *http.Request, what, name string, all []string) {
	if last := r.URL.Query().Get("last"); last != "" {
		all = slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s <= last })
	}
	if n, err := strconv.Atoi(r.URL.Query().Get("n")); err == nil && n >= 0 && n < len(all) {
		all = all[:n]
		if n > 0 {
			q := r.URL.Query()
			q.Set("last", all[n-1])
			w.Header().Set("Link", "<"+r.URL.Path+"?"+q.Encode()+`>; rel="next"`)
		}
	}
	if all == nil {
		all = []string{}
	}
	body := map[string]any{what: all}
	if name != "" {
		body["name"] = name
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(body)
}

func (s *Server) manifest(w http.ResponseWriter, r *http.Request, index *v1.IndexManifest, name, reference string) {
	known := false
	for _, d := range index.Manifests {
		repository, tag := nameOf(d)
		if repository != name {
			continue
		}
		known = true
		if reference != tag && reference != d.Digest.String() {
			continue
		}
		w.Header().Set("Content-Type", string(d.MediaType))
		s.bytesOf(w, r, d.Digest.String())
		return
	}
	if !known {
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "there is no repository "+name)
		return
	}
	refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "there is no "+name+" "+reference)
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request, index *v1.IndexManifest, name, digest string) {
	if !slices.Contains(repositories(index), name) {
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "there is no repository "+name)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	s.bytesOf(w, r, digest)
}

// bytesOf answers with a blob of the layout.
func (s *Server) bytesOf(w http.ResponseWriter, r *http.Request, digest string) {
	m := digestPattern.FindStringSubmatch(digest)
	if m == nil {
		refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "want sha256: and 64 hexadecimal digits")
		return
	}
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("ETag", `"`+digest+`"`)
	if !s.content(w, r, blobsPath+m[1]) {
		w.Header().Del("Docker-Content-Digest")
		w.Header().Del("ETag")
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "there is no "+digest)
	}
}

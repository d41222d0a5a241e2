// Keys: j and k go from stop to stop, / searches, every other key clicks the link that names it
const stops = () => [...document.querySelectorAll('.stop')].filter(e => e.offsetParent)

function go(e) {
  if (!e) return
  e.focus({preventScroll: true})
  e.scrollIntoView({block: 'nearest'})
  // browsers refuse this for files
  if (location.protocol !== 'file:') history.replaceState(null, '', '#' + encodeURIComponent(e.closest('[id]').id))
}

addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return
  const search = document.querySelector('[name=q]')
  if (event.target.matches('input, select')) {
    if (event.key === 'Escape') event.target.blur()
    return
  }
  const all = stops(), at = all.indexOf(document.activeElement)
  const named = [...document.querySelectorAll('[data-key]')].find(e => e.dataset.key === event.key)
  if (event.key === 'j') go(all[Math.min(at + 1, all.length - 1)])
  else if (event.key === 'k') go(all[Math.max(at - 1, 0)])
  else if (event.key === '/' && search) search.select()
  else if (named) named.click()
  else return
  event.preventDefault()
})

// the place in the address: a row, a step, or an episode of a single page
addEventListener('load', () => {
  const place = document.getElementById(decodeURIComponent(location.hash.slice(1)))
  if (!place) return
  if (place.tagName === 'DETAILS') place.open = true
  go(place.matches('.stop') ? place : place.querySelector('.stop'))
})

// a filter applies at once, and empty fields stay out of the address
const form = document.querySelector('form')
if (form) {
  form.addEventListener('change', event => event.target.matches('select') && form.requestSubmit())
  form.addEventListener('submit', () => { for (const e of form.elements) if (!e.value) e.disabled = true })
}

// a single page searches in itself
const find = document.querySelector('.find input')
if (find) find.addEventListener('input', () => {
  for (const e of document.querySelectorAll('details'))
    e.hidden = !e.textContent.toLowerCase().includes(find.value.toLowerCase())
})
